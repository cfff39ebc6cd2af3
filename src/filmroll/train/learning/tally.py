"""What a step did, added up over its micro-batches. N = trained tokens of a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from filmroll.train.batches.bins import Costs
from filmroll.train.learning.forward import Forward
from filmroll.train.learning.loss import Loss, k3
from filmroll.train.loading.loader import Batch
from filmroll.train.step import MissingImage, StepReport
from filmroll.wire.receipt import Receipt
from filmroll.wire.training import MicroBatch

LARGEST = frozenset({"ratio_max", "gap_max", "image_wait", "gpu_memory"})
"""What of two tallies is the larger in the tally of both; everything else is added up."""


@dataclass(slots=True)
class Tally:
    """Sums over the trained tokens of a step's micro-batches, and where the name says so the largest."""

    micro_batches: int = 0
    area: int = 0
    patches: int = 0
    all_tokens: int = 0
    """Trained or not."""
    tokens: int = 0
    loss: float = 0.0
    entropy: float = 0.0
    ratio: float = 0.0
    ratio_max: float = 0.0
    clipped: float = 0.0
    truncated: float = 0.0
    held: int = 0
    """Tokens that are held to a reference policy."""
    divergence: float = 0.0
    on_policy: int = 0
    gap: float = 0.0
    gap_max: float = 0.0
    mismatch: float = 0.0
    receipt: Receipt = field(default_factory=Receipt)
    image_wait: float = 0.0
    gpu_memory: int = 0
    masked: int = 0
    missing: list[MissingImage] = field(default_factory=list)

    def add(self, loss: float, told: torch.Tensor) -> None:
        """A micro-batch's loss and what is told of its tokens, as `Figures` has it, on the host."""
        entropies, ratios, clipped, truncated, divergences, held, apart, on_policy = told
        apart = apart[on_policy > 0]
        gaps = apart.abs()
        self.loss += loss
        self.tokens += len(ratios)
        self.entropy += float(entropies.sum())
        self.ratio += float(ratios.sum())
        self.ratio_max = _largest(self.ratio_max, ratios)
        self.clipped += float(clipped.sum())
        self.truncated += float(truncated.sum())
        self.held += int(held.sum())
        self.divergence += float(divergences.sum())
        self.on_policy += len(gaps)
        self.gap += float(gaps.sum())
        self.gap_max = _largest(self.gap_max, gaps)
        # In float32 nothing would be left of it where engine and trainer agree to the last digits.
        self.mismatch += float(k3(apart.double()).sum())

    def lay_out(self, batches: Sequence[MicroBatch], costs: Costs) -> None:
        """How the micro-batches are made up."""
        self.micro_batches += len(batches)
        self.area += sum(batch.area for batch in batches)
        self.patches += sum(costs.encoded(batch) for batch in batches)
        self.all_tokens += sum(sample.tokens for batch in batches for sample in batch.samples)

    def __add__(self, other: Tally) -> Tally:
        """Of the parts that two ranks have done."""
        made: dict[str, Any] = {}
        for name in (one.name for one in fields(self)):
            mine, theirs = getattr(self, name), getattr(other, name)
            made[name] = max(mine, theirs) if name in LARGEST else mine + theirs
        return Tally(**made)

    def report(self, norm: float, seconds: float) -> StepReport:
        """The step as it is told."""
        return StepReport(
            loss=self.loss,
            grad_norm=norm,
            entropy=_mean(self.entropy, self.tokens),
            ratio_mean=_mean(self.ratio, self.tokens),
            ratio_max=self.ratio_max if self.tokens else None,
            clip_fraction=_mean(self.clipped, self.tokens),
            truncated_fraction=_mean(self.truncated, self.tokens),
            reference_kl=_mean(self.divergence, self.held),
            on_policy=_mean(self.on_policy, self.tokens),
            logprob_gap_mean=_mean(self.gap, self.on_policy),
            logprob_gap_max=self.gap_max if self.on_policy else None,
            mismatch_kl=_mean(self.mismatch, self.on_policy),
            trained_tokens=self.tokens,
            tokens=self.all_tokens,
            area=self.area,
            patches=self.patches,
            micro_batches=self.micro_batches,
            receipt=self.receipt,
            seconds=seconds,
            image_wait=self.image_wait,
            gpu_memory=self.gpu_memory or None,
            samples_masked=self.masked,
            missing=self.missing,
        )


class Figures:
    """What is told of micro-batches. It stays where the model is until the step's end: the host waits for it once."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._losses: list[torch.Tensor] = []
        self._told: list[torch.Tensor] = []

    def add(self, out: Forward, lost: Loss, batch: Batch, version: int) -> None:
        """A micro-batch's forward and loss, of a step that begins with the policy of this version."""
        told = (
            out.entropies,
            lost.ratios,
            lost.clipped,
            lost.truncated,
            lost.divergences,
            batch.kl_weights > 0,
            out.logprobs.detach() - batch.logprobs,
            batch.versions == version,
        )
        self._losses.append(lost.total.detach())
        self._told.append(torch.stack([one.to(lost.ratios.dtype) for one in told]))  # [8, N]
        self._tally.receipt += out.receipt
        self._tally.image_wait += batch.image_wait
        self._tally.masked += batch.masked
        self._tally.missing += batch.missing

    def tally(self) -> Tally:
        """All of them, added up."""
        if not self._told:
            return self._tally
        told = torch.cat(self._told, dim=1).cpu().split_with_sizes([one.shape[1] for one in self._told], dim=1)
        for loss, one in zip(torch.stack(self._losses).tolist(), told, strict=True):
            self._tally.add(loss, one)
        return self._tally


def _largest(known: float, values: torch.Tensor) -> float:
    return max(known, float(values.max())) if len(values) else known


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None
