"""Choosing the next token of every row, and the logprob that a trainer can compute again.

B = rows, V = vocabulary.

The reported logprob is log_softmax(suppress(logits + bias) / temperature) in float32, at temperature 0
log_softmax(suppress(logits + bias)). It is taken before top-k and top-p, which only narrow the choice. A
trainer knows of no bias: who trains on what was sampled with one sees other logprobs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from filmroll.materialize.device import sent
from filmroll.materialize.feed import bounded_bias
from filmroll.wire.generate import SamplingParams

MIN_TEMPERATURE = 1e-3
"""Below it, and above 0, logits divided by the temperature lose their meaning in float32."""


@dataclass(frozen=True, slots=True)
class Choosers:
    """How each of B rows samples, as tensors: made once for a set of rows, used at every step."""

    temperatures: torch.Tensor
    """[B, 1], 1 where the row is greedy."""
    greedy: torch.Tensor | None
    """[B], None where no row is."""
    filtered: torch.Tensor | None
    """Which rows have a top_k or top_p, None where none has."""
    top_k: torch.Tensor
    top_p: torch.Tensor
    seeded: list[tuple[int, torch.Generator]]
    """Rows that draw from a generator of their own, so that their company does not matter."""
    biased: tuple[torch.Tensor, torch.Tensor] | None
    """Rows and tokens to which `biases` is added, None where no row has any."""
    biases: torch.Tensor

    @classmethod
    def of(
        cls,
        params: Sequence[SamplingParams],
        generators: Sequence[torch.Generator | None],
        biases: Sequence[Mapping[int, float]],
        device: torch.device,
    ) -> Choosers:
        greedy = [one.temperature == 0 for one in params]
        filtered = [row for row, one in enumerate(params) if one.top_k > 0 or one.top_p < 1]
        chosen = [params[row] for row in filtered]
        added = [(row, token, bias) for row, own in enumerate(biases) for token, bias in own.items()]
        rows, tokens, values = zip(*added, strict=True) if added else ((), (), ())

        def there(values: Sequence[object]) -> torch.Tensor:
            return sent(torch.tensor(values), device)

        return cls(
            temperatures=there([[one.temperature or 1.0] for one in params]),
            greedy=there(greedy) if any(greedy) else None,
            filtered=there(filtered) if filtered else None,
            top_k=there([[one.top_k if one.top_k > 0 else 2**31] for one in chosen]),
            top_p=there([[one.top_p] for one in chosen]),
            seeded=[(row, generator) for row, generator in enumerate(generators) if generator is not None],
            biased=(there(rows), there(tokens)) if added else None,
            biases=there(values),
        )


def own_generator(params: SamplingParams) -> torch.Generator | None:
    """The generator of a row that has a seed. It lives on the CPU whatever the model's device is."""
    return None if params.seed is None else torch.Generator().manual_seed(params.seed)


def own_bias(params: SamplingParams, never: Collection[int]) -> dict[int, float]:
    """What is added to the logits of a row; nothing to tokens that are `never` sampled, whatever it says."""
    return {token: bounded_bias(bias) for token, bias in (params.logit_bias or {}).items() if token not in never}


def sample(logits: torch.Tensor, choosers: Choosers, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B] and their logprobs [B] from suppressed logits [B, V].

    Rows without a seed of their own draw from `generator`.
    """
    logits = logits.float()
    if choosers.biased is not None:
        logits = logits.index_put(choosers.biased, choosers.biases, accumulate=True)
    logprobs = torch.log_softmax(logits / choosers.temperatures, dim=-1)
    masses = logprobs.exp()
    if choosers.filtered is not None:
        masses[choosers.filtered] = narrowed(masses[choosers.filtered], choosers.top_k, choosers.top_p)
    tokens = _inverse(masses, sent(_uniforms(len(logits), choosers.seeded, generator), logits.device))
    if choosers.greedy is not None:
        tokens = torch.where(choosers.greedy, logits.argmax(dim=-1), tokens)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def narrowed(masses: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Probabilities [B, V] with those outside each row's top_k [B, 1] and top_p [B, 1] set to zero.

    Ties go to the lower token id, so that top_k = 1 is the greedy choice. The likeliest stays always.
    """
    ordered, order = masses.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(masses.shape[-1], device=masses.device)
    before = ordered.cumsum(dim=-1, dtype=torch.float64) - ordered
    keep = (ranks < top_k) & ((before < top_p) | (ranks == 0))
    return torch.zeros_like(masses).scatter(-1, order, ordered * keep)


def _uniforms(rows: int, seeded: Sequence[tuple[int, torch.Generator]], generator: torch.Generator) -> torch.Tensor:
    """One draw of [0, 1) for each row: [B]."""
    draws = torch.rand(rows, dtype=torch.float64, generator=generator)
    for row, own in seeded:
        draws[row] = torch.rand((), dtype=torch.float64, generator=own)
    return draws


def _inverse(masses: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The token in whose share of the row's mass the draw falls; one without mass never is."""
    edges = masses.cumsum(dim=-1, dtype=torch.float64)
    total = edges[:, -1]
    # A draw just below 1 may round up to the total, which lies in nobody's share.
    targets = torch.minimum(draws * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(edges, targets[:, None], right=True)[:, 0].clamp_max(masses.shape[-1] - 1)
