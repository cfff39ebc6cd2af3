"""A training step, and what it took: of a device that works on while the host goes ahead, by the device's own clock."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from filmroll.materialize.feed import vision_tower
from filmroll.train.learning.trainer import Trainer
from filmroll.train.step import StepReport, TrainStep
from filmroll.wire.training import MicroBatch


@dataclass(frozen=True)
class Taken:
    """A step that was taken, in seconds and bytes."""

    report: StepReport
    seconds: float
    tower: float
    """Of them in the vision tower's forward."""
    peak: int
    """On a GPU, the most device memory beside what was there before it: activations and gradients."""


def step(trainer: Trainer, batches: Sequence[MicroBatch]) -> Taken:
    tower, watch = vision_tower(trainer.model), GpuWatch() if trainer.model.device.type == "cuda" else Watch()
    hooks = [
        tower.register_forward_pre_hook(lambda *_: watch.lap()),
        tower.register_forward_hook(lambda *_: watch.lap()),
    ]
    trainer.optimizer.zero_grad()
    watch.settle()
    began = time.perf_counter()
    report = trainer.step(TrainStep(0.0, 0, list(batches)))
    watch.settle()
    seconds = time.perf_counter() - began
    for hook in hooks:
        hook.remove()
    return Taken(report, seconds, watch.between(), (report.gpu_memory or 0) - watch.before)


class Watch:
    """Seconds between every first lap and the second one after it."""

    before = 0
    """Bytes of device memory that were taken when it first settled."""

    def __init__(self) -> None:
        self._laps: list[float] = []

    def settle(self) -> None:
        """Wait until the device has nothing left to do."""

    def lap(self) -> None:
        self._laps.append(time.perf_counter())

    def between(self) -> float:
        return sum(self._laps[1::2]) - sum(self._laps[::2])


class GpuWatch(Watch):
    """The same by the device's own clock: the host, which is ahead, is not held up by a look at it."""

    def __init__(self) -> None:
        self._events: list[Any] = []

    def settle(self) -> None:
        torch.cuda.synchronize()
        if not self.before:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()

    def lap(self) -> None:
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._events.append(event)

    def between(self) -> float:
        pairs = zip(self._events[::2], self._events[1::2], strict=True)
        return sum(float(one.elapsed_time(two)) for one, two in pairs) / 1000
