"""Losses over trained tokens. N = trained tokens of a micro-batch, S = samples of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filmroll.errors import TrainingError
from filmroll.train.learning.objective import LossConfig, Trained

if TYPE_CHECKING:
    import torch

    from filmroll.train.loading.loader import Batch

FARTHEST = 20.0
"""Logprobs that are farther apart than this count as so far apart: what is e to the power of it stays finite."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A micro-batch's part of the step's loss, and for each of its N tokens how far the policy stands from others."""

    total: torch.Tensor
    ratios: torch.Tensor
    """Against the policy that sampled, as they count."""
    clipped: torch.Tensor
    truncated: torch.Tensor
    divergences: torch.Tensor
    """From the reference, where the sample has a weight for it; else 0."""


def loss(
    logprobs: torch.Tensor,
    batch: Batch,
    trained: Trained,
    config: LossConfig,
    reference: torch.Tensor | None = None,
) -> Loss:
    """The clipped or truncated policy gradient, cross-entropy and divergence from the reference, each by its weight.

    `trained` is of the whole step: its micro-batches' losses add up to its loss, however it is packed
    and whichever ranks have its parts. `reference` are the logprobs of a policy to stay close to.
    """
    import torch

    surrogate, ratios, clipped, truncated = _policy(logprobs, batch, config)
    divergences = _divergences(logprobs, batch, config, reference)
    policy = batch.kl_weights * divergences - batch.rl_weights * surrogate
    supervised = -batch.cross_entropy_weights * logprobs
    total = (_shares(batch, trained, config) * policy).sum() + supervised.sum() / max(1, trained.tokens)
    with torch.no_grad():
        return Loss(total, ratios.detach(), clipped.float(), truncated.float(), divergences.detach())


def _policy(
    logprobs: torch.Tensor, batch: Batch, config: LossConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """[N] what is to grow, the ratios that it counts by, and which of them were clipped or truncated."""
    import torch

    # Where the stream has no weight the ratio is 1, and nothing is told of it.
    apart = torch.where(batch.rl_weights > 0, logprobs - batch.logprobs, torch.zeros_like(logprobs))
    if config.truncate_at:
        # The old policy is the present one, as it stands when the step begins: a step has one update.
        weights = torch.exp(apart.detach().clamp(max=FARTHEST))
        truncated = weights > config.truncate_at
        weights = weights.clamp(max=config.truncate_at)
        apart = logprobs - logprobs.detach()
    else:
        weights, truncated = torch.ones_like(apart), torch.zeros_like(apart, dtype=torch.bool)
    if config.ratio == "sequence":
        apart = _sample_means(apart, batch)
    ratios = torch.exp(apart.clamp(max=math.log(config.max_ratio)))
    kept = torch.clamp(ratios, 1 - config.clip_low, 1 + config.clip_high)
    clipped = ratios * batch.advantages > kept * batch.advantages
    surrogate = weights * torch.minimum(ratios * batch.advantages, kept * batch.advantages)
    return surrogate, weights * ratios, clipped, truncated


def _divergences(
    logprobs: torch.Tensor, batch: Batch, config: LossConfig, reference: torch.Tensor | None
) -> torch.Tensor:
    """[N] estimates of the divergence from the reference, none below 0."""
    import torch

    if reference is None:
        if batch.held:
            raise TrainingError(
                "a sample is to be held to a reference policy, and the trainer has none", remedy="Set loss.kl"
            )
        return torch.zeros_like(logprobs)
    apart = torch.where(batch.kl_weights > 0, reference - logprobs, torch.zeros_like(logprobs))
    return k2(apart) if config.kl_estimator == "k2" else k3(apart)


def k2(apart: torch.Tensor) -> torch.Tensor:
    """Estimates of a divergence by half the square of a difference of logprobs: its gradient is the divergence's."""
    return apart.clamp(-FARTHEST, FARTHEST).square() / 2


def k3(apart: torch.Tensor) -> torch.Tensor:
    """How far q is from p, by `apart` = log p - log q of tokens that q sampled: unbiased, and never below 0."""
    import torch

    apart = apart.clamp(-FARTHEST, FARTHEST)
    return torch.expm1(apart) - apart


def _shares(batch: Batch, trained: Trained, config: LossConfig) -> torch.Tensor | float:
    """What each token of the policy's loss is multiplied by, so that the step's sum is its mean."""
    if config.length == "tokens":
        return 1 / max(1, trained.tokens)
    if config.length == "constant":
        return 1 / (max(1, trained.samples) * config.constant)
    return 1 / (max(1, trained.samples) * _lengths(batch))


def _sample_means(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[N] each token's value replaced by the mean over its sample's tokens."""
    return _sample_sums(values, batch) / _lengths(batch)


def _lengths(batch: Batch) -> torch.Tensor:
    """[N] how many trained tokens each token's sample has."""
    import torch

    return _sample_sums(torch.ones_like(batch.advantages), batch)


def _sample_sums(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[N] each token's value replaced by the sum over its sample's tokens."""
    return values.new_zeros(batch.samples).index_add(0, batch.owners, values)[batch.owners]
