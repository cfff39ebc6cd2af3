"""The trainer: micro-batches of references in, policy updates and a report of each step out."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from filmroll.errors import TrainingError
from filmroll.materialize.feed import vision_tower
from filmroll.train.batches.bins import Costs
from filmroll.train.learning.forward import Forward, forward
from filmroll.train.learning.loss import Loss, loss
from filmroll.train.learning.memory import fitting, most_taken
from filmroll.train.learning.model import trainable, training_model
from filmroll.train.learning.objective import LossConfig, Trained
from filmroll.train.learning.ranks import Ranks
from filmroll.train.learning.reference import Reference
from filmroll.train.learning.sharding import shard, whole
from filmroll.train.learning.tally import Figures, Tally
from filmroll.train.loading.album import Images, check_share
from filmroll.train.loading.loader import Batch, Loader
from filmroll.train.loading.places import of_micro_batch
from filmroll.train.step import Measured, StepReport, TrainerConfig, TrainStep
from filmroll.wire.packed import pack, unpack
from filmroll.wire.training import MicroBatch


class Trainer:
    """A model and its optimizer. `step` is all or nothing: an error before the update leaves both as they were."""

    def __init__(
        self,
        model_dir: Path,
        images: Images,
        config: TrainerConfig,
        objective: LossConfig | None = None,
        ranks: Ranks | None = None,
        *,
        may_miss: float = 0.0,
        reference: Reference | None = None,
    ) -> None:
        torch.set_num_threads(config.threads)
        self.config = config
        self.objective = objective or LossConfig()
        self.reference = reference
        self.family = images.family
        self.ranks = ranks or Ranks()
        # Where it is parted among ranks, it goes to its device part by part, and is never there whole.
        alone = self.ranks.count == 1
        self.model: Any = training_model(model_dir, config, device=config.device if alone else "cpu")
        shard(self.model, vision_tower(self.model), self.ranks, config.device)
        self.optimizer = torch.optim.AdamW(trainable(self.model), betas=config.betas, weight_decay=config.weight_decay)
        self._loader = Loader(images, self.model, config, may_miss=may_miss)
        self._may_miss = may_miss

    def step(self, work: TrainStep, trained: Trained | None = None) -> StepReport:
        """Accumulate gradients over the micro-batches, clip, update; the report is of all ranks.

        `trained` is of the whole step, where other ranks have the rest of it. A step of no micro-batches
        updates nothing.
        """
        started = time.perf_counter()
        trained = trained or Trained.of(sample for batch in work.micro_batches for sample in batch.samples)
        if not work.micro_batches:
            return Tally().report(0.0, time.perf_counter() - started)
        with self.ranks.agreeing():
            if trained.tokens == 0:
                raise TrainingError(
                    "the step has no trained tokens", remedy="Nothing was sampled; look at the rollouts"
                )
        self.optimizer.zero_grad(set_to_none=True)
        figures = Figures()
        with closing(self._batches(work, trained)) as batches:
            for micro_batch, batch in batches:
                self._accumulate(micro_batch, batch, work.version, trained, figures)
        tally = figures.tally()
        tally.lay_out(work.micro_batches, Costs(self.family))
        tally.gpu_memory = most_taken(torch.device(self.config.device))
        tally = self._of_all(tally, trained)
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)))
        with self.ranks.agreeing():
            if not math.isfinite(norm):
                self.optimizer.zero_grad(set_to_none=True)
                raise TrainingError(f"the gradient norm is {norm}", remedy="The weights were left as they were")
        for group in self.optimizer.param_groups:
            group["lr"] = work.learning_rate
        self.optimizer.step()
        return tally.report(norm, time.perf_counter() - started)

    def measure(self, work: TrainStep, trained: Trained | None = None) -> Measured:
        """The mean cross-entropy of a step that is not taken: model and optimizer stay as they are."""
        trained = trained or Trained.of(sample for batch in work.micro_batches for sample in batch.samples)
        with self.ranks.agreeing():
            if trained.tokens == 0:
                raise TrainingError("there are no trained tokens to measure the loss of")
        figures = Figures()
        with torch.no_grad(), closing(self._batches(work, trained)) as batches:
            for micro_batch, batch in batches:
                with fitting(micro_batch, self.family):
                    out, lost = self._forward(micro_batch, batch, trained)
                figures.add(out, lost, batch, work.version)
        tally = self._of_all(figures.tally(), trained)
        return Measured(tally.loss, trained.tokens, tally.receipt)

    def _batches(self, work: TrainStep, trained: Trained) -> Generator[tuple[MicroBatch, Batch]]:
        """The micro-batches one after the other, ready on every rank; else the error of one rank on all of them."""
        with ExitStack() as stack:
            with self.ranks.agreeing():
                ready = stack.enter_context(self._loader.batches(work, trained.samples))
            for _ in work.micro_batches:
                with self.ranks.agreeing():
                    at_hand = next(ready)
                yield at_hand

    def _of_all(self, tally: Tally, trained: Trained) -> Tally:
        """What all ranks have done; an error on all of them where they miss too many images together."""
        first, *others = (unpack(one, Tally) for one in self.ranks.gather(pack(tally)))
        whole = sum(others, first)
        with self.ranks.agreeing():
            check_share(whole.masked, trained.samples, self._may_miss, whole.missing)
        return whole

    def _accumulate(
        self, micro_batch: MicroBatch, batch: Batch, version: int, trained: Trained, figures: Figures
    ) -> None:
        with fitting(micro_batch, self.family):
            out, lost = self._forward(micro_batch, batch, trained)
            lost.total.backward()  # type: ignore[no-untyped-call]
        figures.add(out, lost, batch, version)

    def _forward(self, micro_batch: MicroBatch, batch: Batch, trained: Trained) -> tuple[Forward, Loss]:
        with of_micro_batch(micro_batch):
            # First, while there are no activations to keep.
            held = self._reference_logprobs(batch)
            out = self._passed(self.model, batch)
        lost = loss(out.logprobs, batch, trained, self.objective, held)
        return out, lost

    @torch.no_grad()
    def _reference_logprobs(self, batch: Batch) -> torch.Tensor | None:
        if self.reference is None or not batch.held:
            return None
        return self._passed(self.reference.model, batch).logprobs

    def _passed(self, model: Any, batch: Batch) -> Forward:
        config = self.config
        return forward(model, self.family, batch, dtype=config.dtype, at_once=config.logits_at_once)
