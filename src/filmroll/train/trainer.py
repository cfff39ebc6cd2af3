"""The trainer: micro-batches of references in, policy updates and a report of each step out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from filmroll.errors import TrainingError
from filmroll.train.album import Images
from filmroll.train.bins import Costs
from filmroll.train.forward import Forward, forward
from filmroll.train.loader import Batch, Loader
from filmroll.train.loss import Loss, loss
from filmroll.train.model import trainable, training_model
from filmroll.train.objective import LossConfig, Trained
from filmroll.train.places import of_micro_batch
from filmroll.train.reference import Reference
from filmroll.train.step import Measured, StepReport, TrainerConfig, TrainStep
from filmroll.train.tally import Tally
from filmroll.wire.receipt import Receipt
from filmroll.wire.training import MicroBatch


class Trainer:
    """A model and its optimizer. `step` is all or nothing: an error before the update leaves both as they were."""

    def __init__(
        self,
        model_dir: Path,
        images: Images,
        config: TrainerConfig,
        objective: LossConfig | None = None,
        *,
        reference: Reference | None = None,
        may_miss: float = 0.0,
    ) -> None:
        torch.set_num_threads(config.threads)
        self.config = config
        self.objective = objective or LossConfig()
        self.reference = reference
        self.family = images.family
        self.model: Any = training_model(model_dir, config, device=config.device)
        self.optimizer = torch.optim.AdamW(trainable(self.model), betas=config.betas, weight_decay=config.weight_decay)
        self._loader = Loader(images, self.model, config, may_miss=may_miss)

    def step(self, work: TrainStep, trained: Trained | None = None) -> StepReport:
        """Accumulate gradients over the micro-batches, clip, update.

        `trained` is of the whole step, where other ranks have the rest of it. A step of no micro-batches
        updates nothing.
        """
        started = time.perf_counter()
        trained = trained or Trained.of(sample for batch in work.micro_batches for sample in batch.samples)
        if not work.micro_batches:
            return Tally().report([], Costs(self.family), 0.0, time.perf_counter() - started)
        if trained.tokens == 0:
            raise TrainingError("the step has no trained tokens", remedy="Nothing was sampled; look at the rollouts")
        self.optimizer.zero_grad(set_to_none=True)
        tally = Tally()
        with self._loader.batches(work) as batches:
            for micro_batch, batch in batches:
                self._accumulate(micro_batch, batch, work.version, trained, tally)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm))
        if not torch.isfinite(torch.tensor(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise TrainingError(f"the gradient norm is {norm}", remedy="The weights were left as they were")
        for group in self.optimizer.param_groups:
            group["lr"] = work.learning_rate
        self.optimizer.step()
        return tally.report(work.micro_batches, Costs(self.family), norm, time.perf_counter() - started)

    def measure(self, work: TrainStep) -> Measured:
        """The mean cross-entropy of a step that is not taken: model and optimizer stay as they are."""
        trained = Trained.of(sample for batch in work.micro_batches for sample in batch.samples)
        if trained.tokens == 0:
            raise TrainingError("there are no trained tokens to measure the loss of")
        total, receipt = 0.0, Receipt()
        with torch.no_grad(), self._loader.batches(work) as batches:
            for micro_batch, batch in batches:
                out, lost = self._forward(micro_batch, batch, trained)
                total += float(lost.total)
                receipt += out.receipt
        return Measured(total, trained.tokens, receipt)

    def _accumulate(self, micro_batch: MicroBatch, batch: Batch, version: int, trained: Trained, tally: Tally) -> None:
        out, lost = self._forward(micro_batch, batch, trained)
        lost.total.backward()  # type: ignore[no-untyped-call]
        tally.add(out, lost, batch, version)

    def _forward(self, micro_batch: MicroBatch, batch: Batch, trained: Trained) -> tuple[Forward, Loss]:
        with of_micro_batch(micro_batch):
            # First, while there are no activations to keep.
            held = self._reference_logprobs(batch)
            out = forward(self.model, self.family, batch, dtype=self.config.dtype)
        lost = loss(out.logprobs, batch, trained, self.objective, held)
        return out, lost

    @torch.no_grad()
    def _reference_logprobs(self, batch: Batch) -> torch.Tensor | None:
        if self.reference is None or not batch.kl_weights.any():
            return None
        return forward(self.reference.model, self.family, batch, dtype=self.config.dtype).logprobs
