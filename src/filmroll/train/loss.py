"""Losses over trained tokens. N = trained tokens of a micro-batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from filmroll.train.loader import Batch


@dataclass(frozen=True, slots=True)
class Loss:
    """The sum over N tokens, and how far the policy stands from the one that sampled them."""

    total: torch.Tensor
    ratios: torch.Tensor
    clipped: torch.Tensor


def loss(logprobs: torch.Tensor, batch: Batch, *, clip_low: float, clip_high: float, max_ratio: float) -> Loss:
    """GRPO's clipped surrogate with a per-token importance ratio, plus cross-entropy, each by its weight.

    Ratios are held at `max_ratio`: a token that the policy has left far behind pulls no more, where
    its advantage is negative as well. The loss is a sum: the trainer divides by the step's token
    count, so that packing changes nothing.
    """
    import torch

    # Where the stream has no weight the ratio is 1: 0 times infinity would be NaN.
    apart = torch.where(batch.rl_weights > 0, logprobs - batch.logprobs, torch.zeros_like(logprobs))
    ratios = torch.exp(apart.clamp(max=math.log(max_ratio)))
    kept = torch.clamp(ratios, 1 - clip_low, 1 + clip_high)
    surrogate = torch.minimum(ratios * batch.advantages, kept * batch.advantages)
    with torch.no_grad():
        clipped = (ratios * batch.advantages > kept * batch.advantages).float()
    total = -(batch.rl_weights * surrogate + batch.cross_entropy_weights * logprobs).sum()
    return Loss(total, ratios.detach(), clipped)
