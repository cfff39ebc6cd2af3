"""The trainer's forward: logprobs of the trained tokens, as the engine defines them.

N = trained tokens, V = vocabulary, D = hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from filmroll.families import Family
from filmroll.materialize.feed import feeding, suppress
from filmroll.train.loading.loader import Batch
from filmroll.train.step import Dtype
from filmroll.wire.receipt import Receipt

if TYPE_CHECKING:
    import torch

ROWS = 256
"""Tokens whose entropies are taken at once."""


@dataclass(frozen=True, slots=True)
class Forward:
    """[N] logprobs and entropies of the trained tokens, and what the model consumed to give them."""

    logprobs: torch.Tensor
    entropies: torch.Tensor
    receipt: Receipt


def forward(model: Any, family: Family, batch: Batch, *, dtype: Dtype = "float32") -> Forward:
    """One pass. Vision tokens are suppressed and temperatures applied exactly as in sampling.

    `dtype` is what matrices are multiplied in; logprobs are taken in float32 whatever it is. Only the N
    hidden states that predict a trained token meet the vocabulary.
    """
    import torch

    kind = torch.device(model.device).type
    with (
        feeding(model, family, batch.sheet) as consumed,
        _predicting(model, batch),
        torch.autocast(kind, torch.bfloat16, enabled=dtype == "bfloat16"),
    ):
        logits = model(**batch.inputs, use_cache=False).logits.float()  # [N, V]
    # Each takes the place of the one before, which nothing else holds: a step needs memory for them above all.
    logits = suppress(logits, family)
    logits = logits / safe_temperatures(batch.temperatures)[:, None]
    logprobs = torch.log_softmax(logits, dim=-1)  # [N, V]
    del logits
    chosen = logprobs.gather(-1, batch.token_ids[:, None])[:, 0]
    entropies = _entropies(logprobs.detach())
    receipt = batch.receipt.with_consumed(consumed.images).check("training step")
    return Forward(chosen, entropies, receipt)


@contextmanager
def _predicting(model: Any, batch: Batch) -> Iterator[None]:
    """Inside, the language head sees the N hidden states [N, D] alone.

    The whole model is called all the same: what some do to their logits, and what FSDP does around a
    model's forward, happens.
    """

    def chosen(_module: Any, hidden: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (hidden[0][batch.rows, batch.columns - 1],)

    handle = model.get_output_embeddings().register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        handle.remove()


def _entropies(logprobs: torch.Tensor) -> torch.Tensor:
    """[N] from [N, V], a few rows at a time: there may be no room for as much once more."""
    import torch

    return torch.cat([-(some.exp() * some).sum(-1) for some in torch.split(logprobs, ROWS)])


def safe_temperatures(temperatures: torch.Tensor) -> torch.Tensor:
    """Greedy tokens (temperature 0) are reported under the plain distribution."""
    import torch

    return torch.where(temperatures == 0, torch.ones_like(temperatures), temperatures)
