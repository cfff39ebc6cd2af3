"""The trainer as a process: calls come in over a channel, one at a time reaches the model, on all its ranks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from filmroll.errors import TransportError
from filmroll.train.process.team import Team
from filmroll.train.step import (
    Ask,
    Measure,
    Measured,
    Progress,
    Publish,
    Restored,
    StepReport,
    Take,
    TrainStep,
)
from filmroll.wire.transport import Codec, Receiver

T = TypeVar("T")

Samples = Callable[[int], Awaitable[Receiver[TrainStep]]]
"""Opens the stream of samples, beginning with the message of that number."""


class TrainerService:
    """Train, publish weights, keep checkpoints, restore.

    Samples come through a stream, one message a step. They are acknowledged when a checkpoint holds what was
    learnt from them, and a restored trainer asks for those that came after its checkpoint.
    """

    def __init__(self, team: Team, samples: Samples) -> None:
        self._team = team
        self._open_samples = samples
        self._samples: Receiver[TrainStep] | None = None
        self._busy = asyncio.Lock()
        self._out_of_step = asyncio.Event()

    async def ended(self) -> None:
        """Returns when this process has to end, because other ranks wait for what it cannot do any more."""
        await self._out_of_step.wait()

    def handlers(self) -> dict[str, tuple[type, Callable[[Any], Awaitable[Any]]]]:
        return {
            "step": (Take, self._alone(self._step)),
            "measure": (Measure, self._alone(self._measure)),
            "publish": (Publish, self._alone(self._publish)),
            "save": (Progress, self._alone(self._save)),
            "restore": (Ask, self._alone(self._restore)),
        }

    def _alone(self, work: Callable[[Any], Awaitable[T]]) -> Callable[[Any], Awaitable[T]]:
        """The same work, never two at once. What takes long goes to a thread: the event loop stays free to answer."""

        async def handler(message: Any) -> T:
            async with self._busy:
                try:
                    return await work(message)
                finally:
                    if self._team.ranks.out_of_step:
                        self._out_of_step.set()

        return handler

    async def _step(self, wanted: Take) -> StepReport:
        number, work = await self._stream().receive()
        if number != wanted.number:
            raise TransportError(f"step {wanted.number} was to be trained, and the samples of step {number} came")
        return await asyncio.to_thread(self._team.step, work)

    async def _measure(self, wanted: Measure) -> Measured:
        # What the stream may carry is checked where it comes in; a raw run's loader refuses tensors here.
        _, work = Codec(TrainStep, tensors=True).decode([memoryview(part) for part in wanted.parts])
        return await asyncio.to_thread(self._team.measure, work)

    async def _publish(self, message: Publish) -> Ask:
        await asyncio.to_thread(self._team.publish, message.version)
        return Ask()

    async def _save(self, progress: Progress) -> Ask:
        await asyncio.to_thread(self._team.save, progress)
        await self._stream().acknowledge(progress.steps)
        return Ask()

    async def _restore(self, _ask: Ask) -> Restored:
        progress = await asyncio.to_thread(self._team.restore)
        if self._samples is not None:
            await self._samples.close()
        self._samples = await self._open_samples(progress.steps)
        return Restored(progress, self._samples.place)

    def _stream(self) -> Receiver[TrainStep]:
        if self._samples is None:
            raise TransportError("the trainer was asked for a step before it was restored")
        return self._samples
