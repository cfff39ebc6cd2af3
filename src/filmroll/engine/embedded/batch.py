"""Rows that decode together: one KV cache, left-padded, that rows join and leave.

B = rows, T = cached tokens of the longest row, A = position axes (3 with mrope, else 1),
H = key-value heads, D = head size, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from filmroll.engine.embedded.sampling import Choosers, sample
from filmroll.engine.images.resolve import Resolved
from filmroll.families.base import Family
from filmroll.materialize.device import sent
from filmroll.materialize.feed import feeding, model_inputs, rope_positions, suppress
from filmroll.materialize.sheet import Sheet
from filmroll.wire.generate import SamplingParams
from filmroll.wire.receipt import Receipt


@dataclass(slots=True)
class Row:
    """One request on its way through the model."""

    prompt: list[int]
    params: SamplingParams
    images: Resolved
    positions: torch.Tensor
    """[A, T] of the prompt."""
    generator: torch.Generator | None
    bias: dict[int, float] = field(default_factory=dict)
    """What is added to the logits of some tokens."""
    priority: int = 0
    """Of rows that wait, those with a lower one go first, and of these who came first."""
    arrival: int = 0
    heard: Callable[[int, float], None] | None = None
    """Told of each token and its logprob, on the model thread: it only hands them on."""
    done: Future[Row] = field(default_factory=Future)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    receipt: Receipt = field(default_factory=Receipt)
    finish_reason: str | None = None
    version: int = 0

    def append(self, token: int, logprob: float) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in self.params.stop_token_ids:
            self.finish_reason = "stop"
        elif len(self.tokens) == self.params.max_tokens:
            self.finish_reason = "length"


def prompt_positions(model: Any, family: Family, tokens: Sequence[int], images: Resolved) -> torch.Tensor:
    """Rope positions [A, T] of one prompt. Decoding goes on at the highest position + 1."""
    return rope_positions(model, family, [tokens], Sheet.of(images.pictures))[:, 0]


@dataclass(slots=True)
class Batch:
    """Rows with logits for their next token."""

    model: Any
    family: Family
    rows: list[Row]
    cache: Any
    mask: torch.Tensor
    """[B, T], 0 at padding."""
    next_positions: torch.Tensor
    """[A, B], where the token to be sampled will stand."""
    logits: torch.Tensor
    """[B, V], suppressed."""
    choosers: Choosers
    lengths: list[int]
    """How many tokens of each row are cached."""
    last: torch.Tensor
    """[B], the last token of each row."""

    @classmethod
    def prefill(cls, model: Any, family: Family, rows: list[Row]) -> Batch:
        """Run the prompts and their images; a ReceiptError where the model saw other images than were sent."""
        sheet = Sheet.of([picture for row in rows for picture in row.images.pictures])
        inputs = model_inputs(family, [row.prompt for row in rows], sheet, pad="left", device=model.device)
        positions = sent(_left_padded([row.positions for row in rows]), model.device)
        cache = DynamicCache(config=model.config)
        with feeding(model, family, sheet) as consumed:
            logits = _forward(model, **inputs, position_ids=_axes(positions), past_key_values=cache)
        _check_consumed(rows, consumed.images)
        return cls(
            model=model,
            family=family,
            rows=rows,
            cache=cache,
            mask=inputs["attention_mask"],
            next_positions=positions.amax(dim=(0, 2))[None].expand(len(positions), -1) + 1,
            logits=suppress(logits, family),
            choosers=_choosers(rows, model.device),
            lengths=[len(row.prompt) for row in rows],
            last=inputs["input_ids"][:, -1],
        )

    @property
    def can_join(self) -> bool:
        """Whether the cache is of the plain kind, whose rows can be padded further."""
        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def sample(self, generator: torch.Generator) -> None:
        """Give every row its next token: the one place where decoding waits for the device."""
        self.last, logprobs = sample(self.logits, self.choosers, generator)
        # In float32, which holds every token's number.
        for row, (token, logprob) in zip(self.rows, torch.stack([self.last, logprobs], -1).tolist(), strict=True):
            row.append(int(token), logprob)

    def advance(self) -> None:
        """Run the tokens sampled last, for the logits of the next ones."""
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        logits = _forward(
            self.model,
            input_ids=self.last[:, None],
            attention_mask=self.mask,
            position_ids=_axes(self.next_positions[:, :, None]),
            past_key_values=self.cache,
        )
        self.next_positions = self.next_positions + 1
        self.logits = suppress(logits, self.family)
        self.lengths = [length + 1 for length in self.lengths]

    def keep(self, indices: Sequence[int]) -> None:
        """Go on with these rows alone, and without the padding that only others needed."""
        chosen = sent(torch.tensor(indices), self.mask.device)
        self.rows = [self.rows[index] for index in indices]
        self.lengths = [self.lengths[index] for index in indices]
        self.mask, self.logits, self.last = self.mask[chosen], self.logits[chosen], self.last[chosen]
        self.next_positions = self.next_positions[:, chosen]
        self.choosers = _choosers(self.rows, self.mask.device)
        self.cache.batch_select_indices(chosen)
        padding = self.mask.shape[-1] - max(self.lengths)
        if padding and self.can_join:
            self.mask = self.mask[:, padding:]
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, padding:], layer.values[:, :, padding:]

    def join(self, other: Batch) -> None:
        """Take another batch's rows in; both caches must be plain."""
        self.rows = self.rows + other.rows
        self.lengths = self.lengths + other.lengths
        self.mask = _stacked(self.mask, other.mask, dim=-1)
        self.next_positions = torch.cat([self.next_positions, other.next_positions], dim=1)
        self.logits = torch.cat([self.logits, other.logits])
        self.last = torch.cat([self.last, other.last])
        self.choosers = _choosers(self.rows, self.mask.device)
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            # [B, H, T, D]
            mine.keys = _stacked(mine.keys, theirs.keys, dim=-2)
            mine.values = _stacked(mine.values, theirs.values, dim=-2)


def _forward(model: Any, **inputs: Any) -> torch.Tensor:
    """Logits [B, V] after the last token."""
    logits: torch.Tensor = model(**inputs, use_cache=True, logits_to_keep=1).logits
    return logits[:, -1]


def _axes(positions: torch.Tensor) -> torch.Tensor:
    """[A, B, T], or [B, T] for a model with one axis, as its forward expects."""
    return positions if len(positions) > 1 else positions[0]


def _left_padded(positions: Sequence[torch.Tensor]) -> torch.Tensor:
    """[A, B, T] from [A, T] of each row."""
    longest = max(one.shape[-1] for one in positions)
    return torch.stack([torch.nn.functional.pad(one, (longest - one.shape[-1], 0)) for one in positions], dim=1)


def _stacked(one: torch.Tensor, two: torch.Tensor, *, dim: int) -> torch.Tensor:
    """Both along the first dimension; `dim`, counted from the end, is T, and the shorter gets zeros at its left."""
    longest = max(one.shape[dim], two.shape[dim])
    behind = (0, 0) * (-1 - dim)
    return torch.cat([torch.nn.functional.pad(part, (*behind, longest - part.shape[dim], 0)) for part in (one, two)])


def _choosers(rows: Sequence[Row], device: torch.device) -> Choosers:
    params, generators, biases = zip(*((row.params, row.generator, row.bias) for row in rows), strict=True)
    return Choosers.of(params, generators, biases, device)


def _check_consumed(rows: Sequence[Row], consumed: int) -> None:
    """The vision tower computed as many images as the rows refer to; then each row's receipt is complete."""
    total = sum((row.images.receipt for row in rows), Receipt(consumed=consumed))
    total.check("the batch")
    for row in rows:
        row.receipt = row.images.receipt + Receipt(consumed=row.images.receipt.referenced)
