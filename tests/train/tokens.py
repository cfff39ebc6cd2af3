"""Samples by their trained tokens alone, and the loss of them worked out without torch, by padded matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from filmroll.materialize.sheet import Sheet
from filmroll.train.learning.objective import LossConfig, Trained
from filmroll.train.loading.loader import Batch
from filmroll.wire.receipt import Receipt
from filmroll.wire.training import LossWeights


@dataclass(frozen=True)
class Tokens:
    """The trained tokens of one sample: logprobs of the engine, of the policy, of the reference."""

    engine: Sequence[float]
    policy: Sequence[float]
    advantage: float = 1.0
    weights: LossWeights = field(default_factory=lambda: LossWeights(rl=1.0))
    reference: Sequence[float] = ()


def trained(samples: Sequence[Tokens]) -> Trained:
    weighed = [one for one in samples if one.weights.any]
    return Trained(sum(len(one.engine) for one in weighed), sum(len(one.engine) > 0 for one in weighed))


def batch(samples: Sequence[Tokens], dtype: torch.dtype = torch.float64) -> Batch:
    """As the loader makes it: a sample without weight has no tokens in it."""
    samples = [one if one.weights.any else Tokens([], []) for one in samples]
    counts = [len(one.engine) for one in samples]

    def repeated(values: Sequence[float]) -> torch.Tensor:
        return torch.from_numpy(np.repeat(np.asarray(values, np.float64), counts)).to(dtype)

    places = torch.zeros(sum(counts), dtype=torch.long)
    return Batch(
        inputs={},
        sheet=Sheet.of([]),
        rows=places,
        columns=places + 1,
        owners=torch.from_numpy(np.repeat(np.arange(len(samples)), counts)),
        token_ids=places,
        logprobs=joined([one.engine for one in samples], dtype),
        temperatures=torch.ones(sum(counts)),
        versions=places,
        advantages=repeated([one.advantage for one in samples]),
        rl_weights=repeated([one.weights.rl for one in samples]),
        cross_entropy_weights=repeated([one.weights.cross_entropy for one in samples]),
        kl_weights=repeated([one.weights.kl for one in samples]),
        samples=len(samples),
        held=any(one.weights.kl > 0 and len(one.engine) > 0 for one in samples),
        receipt=Receipt(),
    )


def joined(rows: Sequence[Sequence[float]], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=dtype)


def expected(samples: Sequence[Tokens], config: LossConfig) -> tuple[float, np.ndarray]:
    """The loss of the whole step, and its gradient for each token's logprob by central differences.

    `present` stands for the policy as it is when the step begins, where the formula holds it fast.
    """
    weighed = [one for one in samples if one.weights.any]
    wide = max((len(one.engine) for one in weighed), default=0)
    mask = np.array([[place < len(one.engine) for place in range(wide)] for one in weighed], float)

    def matrix(rows: Sequence[Sequence[float]]) -> np.ndarray:
        return np.array([[*row, *[0.0] * (wide - len(row))] for row in rows], np.float64)

    engine, present = matrix([one.engine for one in weighed]), matrix([one.policy for one in weighed])
    reference = matrix([one.reference for one in weighed])
    advantage = np.array([[one.advantage] for one in weighed])
    rl, supervised, kl = (
        np.array([[getattr(one.weights, name)] for one in weighed]) for name in ("rl", "cross_entropy", "kl")
    )

    def total(policy: np.ndarray) -> float:
        old = present if config.truncate_at else engine
        weight = np.minimum(np.exp(present - engine), config.truncate_at) if config.truncate_at else 1.0
        difference = (policy - old) * mask
        if config.ratio == "sequence":
            difference = difference.sum(1, keepdims=True) / mask.sum(1, keepdims=True) * np.ones_like(mask)
        ratio = np.minimum(np.exp(difference), config.max_ratio)
        kept = np.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
        token = -rl * weight * np.minimum(ratio * advantage, kept * advantage)
        away = reference - policy
        token = token + kl * (away**2 / 2 if config.kl_estimator == "k2" else np.exp(away) - away - 1)
        if config.length == "tokens":
            mean = (token * mask).sum() / mask.sum()
        elif config.length == "samples":
            mean = ((token * mask).sum(1) / mask.sum(1)).mean()
        else:
            mean = (token * mask).sum() / (len(weighed) * config.constant)
        return float(mean - (supervised * policy * mask).sum() / mask.sum())

    step = 1e-6
    gradient = []
    for row, place in np.argwhere(mask):
        nudge = np.zeros_like(mask)
        nudge[row, place] = step
        gradient.append((total(present + nudge) - total(present - nudge)) / (2 * step))
    return total(present), np.array(gradient)
