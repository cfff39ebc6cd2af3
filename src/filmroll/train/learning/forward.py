"""The trainer's forward: logprobs of the trained tokens, as the engine defines them.

N = trained tokens, V = vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from filmroll.families import Family
from filmroll.materialize.feed import feeding
from filmroll.train.learning.vocabulary import predicting, read
from filmroll.train.loading.loader import Batch
from filmroll.train.step import Dtype
from filmroll.wire.receipt import Receipt

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Forward:
    """[N] logprobs and entropies of the trained tokens, and what the model consumed to give them."""

    logprobs: torch.Tensor
    entropies: torch.Tensor
    receipt: Receipt


def forward(model: Any, family: Family, batch: Batch, *, dtype: Dtype = "float32", at_once: int = 512) -> Forward:
    """One pass. Vision tokens are suppressed and temperatures applied exactly as in sampling.

    `dtype` is what matrices are multiplied in; logprobs are taken in float32 whatever it is. Only the N
    hidden states that predict a trained token meet the vocabulary, so many `at_once`.
    """
    import torch

    arithmetic = partial(torch.autocast, torch.device(model.device).type, torch.bfloat16, enabled=dtype == "bfloat16")
    with feeding(model, family, batch.sheet) as consumed, predicting(model, batch, at_once) as pieces, arithmetic():
        logits = model(**batch.inputs, use_cache=False).logits
    logprobs, entropies = read(model, family, batch, pieces, logits, arithmetic)
    receipt = batch.receipt.with_consumed(consumed.images).check("training step")
    return Forward(logprobs, entropies, receipt)
