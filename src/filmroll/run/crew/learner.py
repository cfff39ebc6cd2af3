"""The trainer of a run as whoever teaches it speaks to it: samples by a stream, everything else by calls.

A trainer that dies is started again at its checkpoint, and learns once more from what the stream still
holds: all that came after. Whoever asked it for something has the answer then, and notices nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from filmroll.errors import RunError
from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.members.member import Member
from filmroll.run.members.roles import codec
from filmroll.run.processes.lives import Lives
from filmroll.run.room import Room
from filmroll.train.step import Ask, Measure, Measured, Progress, Publish, Restored, StepReport, Take, TrainStep
from filmroll.wire.channel import Caller
from filmroll.wire.transport import Sender, open_sender

T = TypeVar("T")

Start = Callable[[], Awaitable[Member]]
"""Starts a process of the run, and starts it again."""


class Learner:
    """A trainer that is alive, or will be again."""

    def __init__(self, run: RunDirectory, config: Config, start: Start) -> None:
        self.process: Member
        self.restarts = 0
        self._run = run
        self._config = config
        self._start = start
        self._lives = Lives(config.run.restarts)
        self._room = Room(run, config)
        self._caller: Caller | None = None
        self._samples: Sender[TrainStep] | None = None
        self._learnt = 0
        """Before this message of the stream all are learnt from, by this trainer or the one that died."""
        self._masked: dict[int, list[str]] = {}
        """The samples that a step went on without, of each that no checkpoint holds."""

    async def start(self) -> None:
        """Start it; it is not waited for."""
        self.process = await self._start()

    async def connect(self) -> None:
        """Wait until it can be spoken to."""
        self._caller = Caller(await self.process.endpoint())

    @property
    def samples(self) -> Sender[TrainStep]:
        """The stream of samples, one message a step; there is one once the trainer is restored."""
        if self._samples is None:
            raise RunError("samples were to be sent before the trainer was restored")
        return self._samples

    async def restore(self) -> Progress:
        self._room.look()
        restored = await self._ask("restore", Ask(), Restored)
        stream = open_sender(restored.samples, codec(self._config), self._config.transport.window)
        self._samples = await self.process.watch(stream)
        self._learnt = restored.progress.steps
        return restored.progress

    async def step(self, work: TrainStep) -> StepReport:
        """Send a step's samples and have the trainer learn from them."""
        # Sent once, whatever becomes of the trainer meanwhile: the stream keeps it for the next one.
        sending = asyncio.ensure_future(self.samples.send(work))
        try:
            number = await self._alive(lambda: self.process.watch(_unharmed(sending)))
        finally:
            sending.cancel()
        return await self.take(number)

    async def take(self, number: int) -> StepReport:
        """Have the trainer learn from samples that are in the stream."""
        report = await self._ask("step", Take(number), StepReport)
        self._learnt = number + 1
        self._masked[number] = _masked(report)
        return report

    async def measure(self, work: TrainStep) -> Measured:
        """What the loss of a step would be, without taking it."""
        return await self._ask(
            "measure", Measure([bytes(part) for part in codec(self._config).encode(0, work)]), Measured
        )

    async def save(self, progress: Progress) -> None:
        await self._ask("save", progress, Ask)
        self._room.look()
        self._masked = {number: names for number, names in self._masked.items() if number >= progress.steps}

    async def publish(self, version: int) -> None:
        """Have the weights written under this version."""
        await self._ask("publish", Publish(version), Ask)

    async def stop(self) -> None:
        if self._caller is not None:
            self._caller.close()
        if self._samples is not None:
            await self._samples.close()
        await self.process.stop()

    async def _ask(self, name: str, message: Any, answer: type[T]) -> T:
        return await self._alive(lambda: self._call(name, message, answer))

    async def _call(self, name: str, message: Any, answer: type[T]) -> T:
        if self._caller is None:
            raise RunError("the trainer was spoken to before it was there")
        return await self.process.watch(self._caller.call(name, message, answer))

    async def _alive(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` gives; where the trainer dies of it or before, the next one gives it."""
        while True:
            try:
                return await work()
            except RunError:
                if not self.process.exited.done():
                    raise
            await self._revive()

    async def _revive(self) -> None:
        """Start the trainer again, until it has learnt what the one that died had learnt, or it dies too often."""
        began = time.monotonic()
        while True:
            lost = self.process.lost()
            self._run.event("trainer_died", error=f"{lost.problem}: {lost.private}")
            self._lives.spend(self.process)
            if self._caller is not None:
                self._caller.close()
                self._caller = None
            try:
                await self.start()
                await self.connect()
                learnt = await self._catch_up()
            except RunError:
                if not self.process.exited.done():
                    raise
            else:
                self.restarts += 1
                self._run.event("trainer_restarted", learnt_again=learnt, seconds=time.monotonic() - began)
                return

    async def _catch_up(self) -> int:
        """How many steps it has taken once more."""
        if self._samples is None:
            return 0
        restored = await self._call("restore", Ask(), Restored)
        await self._samples.move(restored.samples)
        missed = range(restored.progress.steps, self._learnt)
        for number in missed:
            self._compare(number, await self._call("step", Take(number), StepReport))
        return len(missed)

    def _compare(self, number: int, report: StepReport) -> None:
        """Say where the policy differs a little from what was published: images come and go between two times."""
        before, now = self._masked.get(number, []), _masked(report)
        if before != now:
            self._run.event("learnt_otherwise", number=number, without_before=before, without_now=now)
            self._masked[number] = now


def _masked(report: StepReport) -> list[str]:
    return sorted({missing.sample for missing in report.missing})


async def _unharmed(work: asyncio.Future[T]) -> T:
    """Its result; whoever gives up waiting for it leaves it alone."""
    return await asyncio.shield(work)
