"""The trainer as a process: calls come in over a channel, one at a time reaches the model."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from filmroll.engine.weights import write_weights
from filmroll.materialize import Materializer
from filmroll.train import checkpoint
from filmroll.train.step import Ask, Progress, Publish, TrainerConfig, TrainStep
from filmroll.train.trainer import Trainer

T = TypeVar("T")


class TrainerService:
    """Train, publish weights, keep checkpoints, restore."""

    def __init__(
        self,
        model_dir: Path,
        materializer: Materializer,
        config: TrainerConfig,
        *,
        weights: Path,
        checkpoints: Path,
        keep: int,
    ) -> None:
        self._trainer = Trainer(model_dir, materializer, config)
        self._weights = weights
        self._checkpoints = checkpoints
        self._keep = keep
        self._busy = asyncio.Lock()

    def handlers(self) -> dict[str, tuple[type, Callable[[Any], Awaitable[Any]]]]:
        return {
            "step": (TrainStep, self._alone(self._trainer.step)),
            "publish": (Publish, self._alone(self._publish)),
            "save": (Progress, self._alone(self._save)),
            "restore": (Ask, self._alone(self._restore)),
        }

    def _alone(self, work: Callable[[Any], T]) -> Callable[[Any], Awaitable[T]]:
        """The same work in a thread, never two at once: the event loop stays free to answer."""

        async def handler(message: Any) -> T:
            async with self._busy:
                return await asyncio.to_thread(work, message)

        return handler

    def _publish(self, message: Publish) -> Ask:
        write_weights(self._trainer.model.state_dict(), self._weights, message.version)
        self._drop_old_weights(message.version)
        return Ask()

    def _drop_old_weights(self, newest: int) -> None:
        """Engines load a version right after it is written; two are kept for one that is late."""
        for folder in self._weights.glob("step_*"):
            if folder.name.removeprefix("step_").isdecimal() and int(folder.name.removeprefix("step_")) < newest - 1:
                shutil.rmtree(folder, ignore_errors=True)

    def _save(self, progress: Progress) -> Ask:
        checkpoint.save(self._checkpoints, self._trainer.model, self._trainer.optimizer, progress)
        checkpoint.prune(self._checkpoints, self._keep)
        return Ask()

    def _restore(self, _ask: Ask) -> Progress:
        newest = checkpoint.newest(self._checkpoints)
        if newest is None:
            return Progress()
        return checkpoint.restore(newest, self._trainer.model, self._trainer.optimizer)
