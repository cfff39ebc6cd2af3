"""The trainer of a run as whoever teaches it speaks to it: samples by a stream, everything else by calls."""

from __future__ import annotations

from typing import Any, TypeVar

from filmroll.errors import RunError
from filmroll.run.config import Config
from filmroll.run.member import Member
from filmroll.run.roles import codec
from filmroll.train.step import Ask, Measure, Measured, Progress, Publish, Restored, StepReport, Take, TrainStep
from filmroll.wire.channel import Caller
from filmroll.wire.transport import Sender, open_sender

T = TypeVar("T")


class Learner:
    """A trainer that is alive."""

    def __init__(self, config: Config, process: Member) -> None:
        self.process = process
        self._config = config
        self._caller: Caller
        self._samples: Sender[TrainStep] | None = None

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
        restored = await self._ask("restore", Ask(), Restored)
        stream = open_sender(restored.samples, codec(self._config), self._config.transport.window)
        self._samples = await self.process.watch(stream)
        return restored.progress

    async def step(self, work: TrainStep) -> StepReport:
        """Send a step's samples and have the trainer learn from them."""
        return await self.take(await self.process.watch(self.samples.send(work)))

    async def take(self, number: int) -> StepReport:
        """Have the trainer learn from samples that are in the stream."""
        return await self._ask("step", Take(number), StepReport)

    async def measure(self, work: TrainStep) -> Measured:
        """What the loss of a step would be, without taking it."""
        return await self._ask(
            "measure", Measure([bytes(part) for part in codec(self._config).encode(0, work)]), Measured
        )

    async def save(self, progress: Progress) -> None:
        await self._ask("save", progress, Ask)

    async def publish(self, version: int) -> None:
        """Have the weights written under this version."""
        await self._ask("publish", Publish(version), Ask)

    async def close(self) -> None:
        self._caller.close()
        if self._samples is not None:
            await self._samples.close()

    async def _ask(self, name: str, message: Any, answer: type[T]) -> T:
        return await self.process.watch(self._caller.call(name, message, answer))
