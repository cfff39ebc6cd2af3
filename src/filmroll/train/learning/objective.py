"""What a step minimizes: the `[loss]` section, and what the sums of a step are divided by.

Imports no torch: the orchestrator speaks this language too. The formulas are in docs/losses.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from filmroll.wire.training import TrainingSample


class LossConfig(BaseModel):
    """The `[loss]` section."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    length: Literal["tokens", "samples", "constant"] = "tokens"
    """What a sample's sum over tokens is divided by: the step's tokens, its own tokens, or a constant."""
    constant: int = Field(default=1024, ge=1)
    """That constant, in tokens."""
    normalize: bool = True
    """Divide advantages by the group's standard deviation."""
    ratio: Literal["token", "sequence"] = "token"
    """Importance ratios of single tokens, or one of each sample: the geometric mean of its tokens'."""
    clip_low: float = Field(default=0.2, ge=0, le=1)
    """How far below 1 an importance ratio still counts."""
    clip_high: float = Field(default=0.2, ge=0)
    """How far above 1 an importance ratio still counts."""
    max_ratio: float = Field(default=3.0, gt=1)
    """Importance ratios are held at this: a token that the policy has left far behind pulls no more."""
    truncate_at: float = Field(default=0.0, ge=0)
    """Weigh tokens by trainer's against engine's probability, at most this, instead of clipping; 0 clips."""
    kl: float = Field(default=0.0, ge=0)
    """Weight of the divergence from a reference policy; 0 keeps none."""
    kl_estimator: Literal["k2", "k3"] = "k3"
    """How that divergence is estimated from sampled tokens."""
    reference: str = ""
    """A model folder to stay close to; empty means the policy that reinforcement learning begins with."""

    @model_validator(mode="after")
    def _sensible(self) -> LossConfig:
        if 0 < self.truncate_at < 1:
            raise ValueError(f"truncate_at = {self.truncate_at} would hold every weight below 1: take 1 or more, or 0")
        if self.reference and not self.kl:
            raise ValueError("a reference is named, and kl = 0 gives it no weight")
        return self


@dataclass(frozen=True, slots=True)
class Trained:
    """How much a whole step trains, on all ranks together: known before the first forward.

    Parts of a step add up to it, whichever samples are in which.
    """

    tokens: int
    samples: int

    @classmethod
    def of(cls, samples: Iterable[TrainingSample]) -> Trained:
        counts = [len(sample.targets) for sample in samples]
        return cls(sum(counts), sum(count > 0 for count in counts))

    def __add__(self, other: Trained) -> Trained:
        return Trained(self.tokens + other.tokens, self.samples + other.samples)
