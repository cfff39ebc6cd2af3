"""What a step did, added up over its micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from filmroll.train.bins import Costs
from filmroll.train.forward import Forward
from filmroll.train.loader import Batch
from filmroll.train.loss import Loss
from filmroll.train.step import StepReport
from filmroll.wire.receipt import Receipt
from filmroll.wire.training import MicroBatch


@dataclass(slots=True)
class Tally:
    """Sums over the micro-batches of a step."""

    loss: float = 0.0
    entropy: float = 0.0
    ratio: float = 0.0
    ratio_max: float = 0.0
    clipped: float = 0.0
    on_policy: int = 0
    gap: float = 0.0
    gap_max: float = 0.0
    receipt: Receipt = field(default_factory=Receipt)

    def add(self, out: Forward, lost: Loss, batch: Batch, version: int, trained: int) -> None:
        """A micro-batch's forward and loss, of a step that trains so many tokens of a policy of this version."""
        gaps = (out.logprobs.detach() - batch.logprobs).abs()[batch.versions == version]
        self.loss += float(lost.total.detach()) / trained
        self.entropy += float(out.entropies.sum())
        self.ratio += float(lost.ratios.sum())
        self.ratio_max = max([self.ratio_max, *lost.ratios.tolist()])
        self.clipped += float(lost.clipped.sum())
        self.on_policy += len(gaps)
        self.gap += float(gaps.sum())
        self.gap_max = max([self.gap_max, *gaps.tolist()])
        self.receipt += out.receipt

    def report(
        self, batches: Sequence[MicroBatch], costs: Costs, trained: int, norm: float, seconds: float
    ) -> StepReport:
        """The step of these micro-batches as it is told."""
        return StepReport(
            loss=self.loss,
            grad_norm=norm,
            entropy=self.entropy / trained,
            ratio_mean=self.ratio / trained,
            ratio_max=self.ratio_max,
            clip_fraction=self.clipped / trained,
            on_policy=self.on_policy / trained,
            logprob_gap_mean=self.gap / self.on_policy if self.on_policy else None,
            logprob_gap_max=self.gap_max if self.on_policy else None,
            trained_tokens=trained,
            tokens=sum(sample.tokens for batch in batches for sample in batch.samples),
            area=sum(batch.area for batch in batches),
            patches=sum(costs.encoded(batch) for batch in batches),
            micro_batches=len(batches),
            receipt=self.receipt,
            seconds=seconds,
        )
