"""The processes of one trainer: rank 0 is told what to do, passes it on, and all do their part of it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import torch

from filmroll.engine.weights import SHARD_BYTES, without_ties, write_in_turn
from filmroll.train.batches.bins import Costs
from filmroll.train.batches.plan import deal
from filmroll.train.learning.model import merged
from filmroll.train.learning.objective import Trained
from filmroll.train.learning.sharding import gathered
from filmroll.train.learning.trainer import Trainer
from filmroll.train.process import checkpoint
from filmroll.train.step import Dtype, Measured, Progress, StepReport, TrainStep
from filmroll.wire.packed import pack, unpack
from filmroll.wire.training import MicroBatch
from filmroll.wire.transport import Codec

_log = logging.getLogger(__name__)


class Learn(msgspec.Struct, frozen=True, tag=True):
    """Take a step that trains so much on all ranks together; each rank's part follows."""

    trained: Trained


class Weigh(msgspec.Struct, frozen=True, tag=True):
    """The same without taking it: only tell the loss."""

    trained: Trained


class Write(msgspec.Struct, frozen=True, tag=True):
    """Gather the weights for engines, as this version."""

    version: int


class Keep(msgspec.Struct, frozen=True, tag=True):
    """Write a checkpoint."""

    progress: Progress


class Return(msgspec.Struct, frozen=True, tag=True):
    """Go back to a checkpoint."""

    name: str


Order = Learn | Weigh | Write | Keep | Return


class Team:
    """This process's trainer among its ranks. Rank 0 calls the methods, the others `follow`; alone there is only it."""

    def __init__(
        self,
        trainer: Trainer,
        *,
        weights: Path,
        checkpoints: Path,
        keep: int,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.ranks = trainer.ranks
        self._trainer = trainer
        self._weights = weights
        self._checkpoints = checkpoints
        self._keep = keep
        self._shard_bytes = shard_bytes
        self._costs = Costs(trainer.family)
        self._parts = Codec(TrainStep, tensors=True)

    def step(self, work: TrainStep) -> StepReport:
        """Take a step, each rank with its part of the samples; the report is of all of them."""
        report: StepReport = self._together(Learn(_trained(work)), work)
        return report

    def measure(self, work: TrainStep) -> Measured:
        """What the loss of a step would be."""
        measured: Measured = self._together(Weigh(_trained(work)), work)
        return measured

    def publish(self, version: int) -> None:
        """Write the weights for engines; older ones than the last two are dropped."""
        self._together(Write(version))

    def save(self, progress: Progress) -> None:
        """Write a checkpoint; older ones are dropped."""
        self._together(Keep(progress))

    def restore(self) -> Progress:
        """Go back to the newest checkpoint, if there is one."""
        newest = checkpoint.newest(self._checkpoints)
        if newest is None:
            return Progress()
        progress: Progress = self._together(Return(newest.name))
        return progress

    def follow(self) -> None:
        """Do as rank 0 is told, until it is gone: then this raises. What all ranks agree has failed, rank 0 tells."""
        while True:
            with self.ranks.in_step():
                order: Order = unpack(self.ranks.order(), cast("type[Order]", Order))
            try:
                with self.ranks.in_step():
                    self._do(order)
            except Exception as error:
                if self.ranks.out_of_step:
                    raise
                _log.warning("rank 0 is told: %s", error)

    def _together(self, order: Order, work: TrainStep | None = None) -> Any:
        with self.ranks.in_step():
            self.ranks.order(pack(order))
            return self._do(order, work)

    def _do(self, order: Order, work: TrainStep | None = None) -> Any:
        match order:
            case Learn(trained):
                return self._trainer.step(self._part(work), trained)
            case Weigh(trained):
                return self._trainer.measure(self._part(work), trained)
            case Write(version):
                return self._write(version)
            case Keep(progress):
                trainer = self._trainer
                checkpoint.save(self._checkpoints, trainer.model, trainer.optimizer, progress, self.ranks)
                if self.ranks.leads:
                    checkpoint.prune(self._checkpoints, self._keep)
                return None
            case Return(name):
                folder = self._checkpoints / name
                return checkpoint.restore(folder, self._trainer.model, self._trainer.optimizer, self.ranks)

    def _part(self, work: TrainStep | None) -> TrainStep:
        """What this rank does of a step, which rank 0 has whole."""
        if work is not None and self.ranks.count == 1:
            return work
        parts: list[bytes] = []
        with self.ranks.agreeing():
            if work is not None:
                dealt = deal(work.micro_batches, self._costs, self.ranks.count)
                parts = [b"".join(self._parts.encode(0, _part_of(work, mine))) for mine in dealt]
        mine = memoryview(self.ranks.scatter(parts))
        with self.ranks.agreeing():
            return self._parts.decode(self._parts.split(mine))[1]

    def _write(self, version: int) -> None:
        kept, tied = without_ties(self._trainer.model.state_dict(keep_vars=True))
        coming = gathered(kept, keep=self.ranks.leads)
        with self.ranks.agreeing():
            try:
                if self.ranks.leads:
                    whole = _rounded(merged(coming, self._trainer.config), self._trainer.config.weights_dtype)
                    write_in_turn(whole, self._weights, version, tied=tied, shard_bytes=self._shard_bytes)
                    if self._trainer.reference is not None:
                        self._trainer.reference.keep(self._weights, version)
                    self._drop_old_weights(version)
            finally:
                # Whatever happens to the files, the others wait for rank 0 at every tensor.
                for _ in coming:
                    pass

    def _drop_old_weights(self, newest: int) -> None:
        """Engines load a version right after it is written; two are kept for one that is late."""
        for folder in self._weights.glob("step_*"):
            if folder.name.removeprefix("step_").isdecimal() and int(folder.name.removeprefix("step_")) < newest - 1:
                shutil.rmtree(folder, ignore_errors=True)


def _rounded(tensors: Iterable[tuple[str, torch.Tensor]], dtype: Dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """The same in these numbers, as far as they are no integers."""
    for name, value in tensors:
        yield name, value.to(getattr(torch, dtype)) if value.is_floating_point() else value


def _trained(work: TrainStep) -> Trained:
    return Trained.of(sample for batch in work.micro_batches for sample in batch.samples)


def _part_of(work: TrainStep, micro_batches: list[MicroBatch]) -> TrainStep:
    """These micro-batches of a step, and of what it carries what they show."""
    shown = {image.descriptor.identity for batch in micro_batches for image in batch.images}
    return msgspec.structs.replace(
        work,
        micro_batches=micro_batches,
        images=[image for image in work.images if image.identity in shown],
        lost=[image for image in work.lost if image.identity in shown],
    )
