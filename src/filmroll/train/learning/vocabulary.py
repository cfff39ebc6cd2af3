"""What a model says of the trained tokens, without its logits ever being there all at once.

N = trained tokens, V = vocabulary, D = hidden size. [N, V] in float32 would be the largest thing of a step: 10 GB for
16,384 tokens and 152,000 words, and several times over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from filmroll.families import Family
from filmroll.materialize.feed import suppress
from filmroll.train.loading.loader import Batch

if TYPE_CHECKING:
    import torch


class Arithmetic(Protocol):
    """Within what matrices are multiplied."""

    def __call__(self, *, cache_enabled: bool) -> AbstractContextManager[Any]: ...


@contextmanager
def predicting(model: Any, batch: Batch, at_once: int) -> Iterator[list[torch.Tensor]]:
    """Inside, a model's forward has its language head see the last [n, D] of the trained tokens' N hidden states.

    All of them, in pieces of so many, are in the list afterwards. The whole model is called: what some do to
    their logits, and what FSDP does around a model's forward, happens.
    """
    import torch

    pieces: list[torch.Tensor] = []

    def last(_module: Any, hidden: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        pieces.extend(torch.split(hidden[0][batch.rows, batch.columns - 1], at_once))
        return (pieces[-1],)

    handle = model.get_output_embeddings().register_forward_pre_hook(last)
    try:
        yield pieces
    finally:
        handle.remove()


def read(
    model: Any,
    family: Family,
    batch: Batch,
    pieces: list[torch.Tensor],
    last: torch.Tensor,
    arithmetic: Arithmetic,
) -> tuple[torch.Tensor, torch.Tensor]:
    """[N] logprobs and entropies of the trained tokens, from their hidden states and the logits of the last piece.

    Logits of the other pieces are made, read and forgotten, and made again in the backward pass.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    head = model.get_output_embeddings()

    def made(hidden: torch.Tensor, tokens: torch.Tensor, temperatures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Without autocast's cache each piece gives the head a gradient in float32; with it they would be added up
        # in bfloat16.
        with arithmetic(cache_enabled=False):
            logits = head(hidden)
        return _said(_capped(logits, model, family), family, tokens, temperatures)

    sizes = [len(piece) for piece in pieces]
    told = (torch.split(values, sizes) for values in (batch.token_ids, batch.temperatures))
    *others, (_, tokens, temperatures) = zip(pieces, *told, strict=True)
    said = [checkpoint(made, *piece, use_reentrant=False, preserve_rng_state=False) for piece in others]
    said.append(_said(last, family, tokens, temperatures))
    logprobs, entropies = (torch.cat(parts) for parts in zip(*said, strict=True))
    return logprobs, entropies


def _capped(logits: torch.Tensor, model: Any, family: Family) -> torch.Tensor:
    """What the model's forward does behind its head."""
    cap = model.config.get_text_config().final_logit_softcapping if family.forward.caps else None
    return logits if cap is None else (logits / cap).tanh() * cap


def _said(
    logits: torch.Tensor, family: Family, tokens: torch.Tensor, temperatures: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logprobs of these tokens and entropies, under the distributions that an engine samples from."""
    import torch

    logits = suppress(logits.float(), family) / _safe(temperatures)[:, None]
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(-1, tokens[:, None])[:, 0]
    known = logprobs.detach()
    return chosen, -(known.exp() * known).sum(-1)


def _safe(temperatures: torch.Tensor) -> torch.Tensor:
    """Greedy tokens (temperature 0) are reported under the plain distribution."""
    import torch

    return torch.where(temperatures == 0, torch.ones_like(temperatures), temperatures)
