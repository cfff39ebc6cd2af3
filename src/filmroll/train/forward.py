"""The trainer's forward: logprobs of the trained tokens, as the engine defines them.

B = rows, T = tokens, N = trained tokens, V = vocabulary, D = hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from filmroll.families import Family
from filmroll.materialize.feed import feeding, suppress
from filmroll.train.loader import Batch
from filmroll.wire.receipt import Receipt

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Forward:
    """[N] logprobs and entropies of the trained tokens, and what the model consumed to give them."""

    logprobs: torch.Tensor
    entropies: torch.Tensor
    receipt: Receipt


def forward(model: Any, family: Family, batch: Batch) -> Forward:
    """One pass. Vision tokens are suppressed and temperatures applied exactly as in sampling.

    Only the N hidden states that predict a trained token meet the vocabulary.
    """
    import torch

    with feeding(model, family, batch.sheet) as consumed:
        hidden = model.model(**batch.inputs, use_cache=False).last_hidden_state  # [B, T, D]
    predicting = hidden[batch.rows, batch.columns - 1]  # [N, D]
    logits = suppress(model.lm_head(predicting).float(), family) / safe_temperatures(batch.temperatures)[:, None]
    logps = torch.log_softmax(logits, dim=-1)  # [N, V]
    chosen = logps.gather(-1, batch.token_ids[:, None])[:, 0]
    with torch.no_grad():
        entropies = -(logps.exp() * logps).sum(-1)
    receipt = batch.receipt.with_consumed(consumed.images).check("training step")
    return Forward(chosen, entropies, receipt)


def safe_temperatures(temperatures: torch.Tensor) -> torch.Tensor:
    """Greedy tokens (temperature 0) are reported under the plain distribution."""
    import torch

    return torch.where(temperatures == 0, torch.ones_like(temperatures), temperatures)
