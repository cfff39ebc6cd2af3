"""The trainer as a process: calls come in over a channel, one at a time reaches the model."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from filmroll.engine.weights import write_weights
from filmroll.errors import TransportError
from filmroll.train import checkpoint
from filmroll.train.album import Images
from filmroll.train.model import merged
from filmroll.train.objective import LossConfig
from filmroll.train.reference import Reference
from filmroll.train.step import (
    Ask,
    Measure,
    Measured,
    Progress,
    Publish,
    Restored,
    StepReport,
    Take,
    TrainerConfig,
    TrainStep,
)
from filmroll.train.trainer import Trainer
from filmroll.wire.transport import Codec, Receiver

T = TypeVar("T")

Samples = Callable[[int], Awaitable[Receiver[TrainStep]]]
"""Opens the stream of samples, beginning with the message of that number."""


class TrainerService:
    """Train, publish weights, keep checkpoints, restore.

    Samples come through a stream, one message a step. They are acknowledged when a checkpoint holds what was
    learnt from them, and a restored trainer asks for those that came after its checkpoint.
    """

    def __init__(
        self,
        model_dir: Path,
        images: Images,
        config: TrainerConfig,
        objective: LossConfig,
        samples: Samples,
        *,
        weights: Path,
        checkpoints: Path,
        keep: int,
        reference: Reference | None = None,
        may_miss: float = 0.0,
    ) -> None:
        self._trainer = Trainer(model_dir, images, config, objective, reference=reference, may_miss=may_miss)
        self._open_samples = samples
        self._samples: Receiver[TrainStep] | None = None
        self._weights = weights
        self._reference = reference
        self._checkpoints = checkpoints
        self._keep = keep
        self._busy = asyncio.Lock()

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
                return await work(message)

        return handler

    async def _step(self, wanted: Take) -> StepReport:
        number, work = await self._stream().receive()
        if number != wanted.number:
            raise TransportError(f"step {wanted.number} was to be trained, and the samples of step {number} came")
        return await asyncio.to_thread(self._trainer.step, work)

    async def _measure(self, wanted: Measure) -> Measured:
        # What the stream may carry is checked where it comes in; a raw run's loader refuses tensors here.
        _, work = Codec(TrainStep, tensors=True).decode([memoryview(part) for part in wanted.parts])
        return await asyncio.to_thread(self._trainer.measure, work)

    async def _publish(self, message: Publish) -> Ask:
        await asyncio.to_thread(self._write_weights, message)
        return Ask()

    def _write_weights(self, message: Publish) -> None:
        whole = merged(self._trainer.model.state_dict().items(), self._trainer.config)
        write_weights(dict(whole), self._weights, message.version)
        if self._reference is not None:
            self._reference.keep(self._weights, message.version)
        self._drop_old_weights(message.version)

    def _drop_old_weights(self, newest: int) -> None:
        """Engines load a version right after it is written; two are kept for one that is late."""
        for folder in self._weights.glob("step_*"):
            if folder.name.removeprefix("step_").isdecimal() and int(folder.name.removeprefix("step_")) < newest - 1:
                shutil.rmtree(folder, ignore_errors=True)

    async def _save(self, progress: Progress) -> Ask:
        await asyncio.to_thread(self._write_checkpoint, progress)
        await self._stream().acknowledge(progress.steps)
        return Ask()

    def _write_checkpoint(self, progress: Progress) -> None:
        checkpoint.save(self._checkpoints, self._trainer.model, self._trainer.optimizer, progress)
        checkpoint.prune(self._checkpoints, self._keep)

    async def _restore(self, _ask: Ask) -> Restored:
        progress = await asyncio.to_thread(self._read_checkpoint)
        if self._samples is not None:
            await self._samples.close()
        self._samples = await self._open_samples(progress.steps)
        return Restored(progress, self._samples.place)

    def _read_checkpoint(self) -> Progress:
        newest = checkpoint.newest(self._checkpoints)
        if newest is None:
            return Progress()
        return checkpoint.restore(newest, self._trainer.model, self._trainer.optimizer)

    def _stream(self) -> Receiver[TrainStep]:
        if self._samples is None:
            raise TransportError("the trainer was asked for a step before it was restored")
        return self._samples
