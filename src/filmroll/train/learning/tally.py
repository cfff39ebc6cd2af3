"""What a step did, added up over its micro-batches."""

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

LARGEST = frozenset({"ratio_max", "gap_max", "image_wait"})
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
    masked: int = 0
    missing: list[MissingImage] = field(default_factory=list)

    def add(self, out: Forward, lost: Loss, batch: Batch, version: int) -> None:
        """A micro-batch's forward and loss, of a step that begins with the policy of this version."""
        apart = (out.logprobs.detach() - batch.logprobs)[batch.versions == version]
        gaps = apart.abs()
        self.tokens += len(lost.ratios)
        self.loss += float(lost.total.detach())
        self.entropy += float(out.entropies.sum())
        self.ratio += float(lost.ratios.sum())
        self.ratio_max = _largest(self.ratio_max, lost.ratios)
        self.clipped += float(lost.clipped.sum())
        self.truncated += float(lost.truncated.sum())
        self.held += int((batch.kl_weights > 0).sum())
        self.divergence += float(lost.divergences.sum())
        self.on_policy += len(gaps)
        self.gap += float(gaps.sum())
        self.gap_max = _largest(self.gap_max, gaps)
        # In float32 nothing would be left of it where engine and trainer agree to the last digits.
        self.mismatch += float(k3(apart.cpu().double()).sum())
        self.receipt += out.receipt
        self.image_wait += batch.image_wait
        self.masked += batch.masked
        self.missing += batch.missing

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
            samples_masked=self.masked,
            missing=self.missing,
        )


def _largest(known: float, values: torch.Tensor) -> float:
    return max(known, float(values.max())) if len(values) else known


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None
