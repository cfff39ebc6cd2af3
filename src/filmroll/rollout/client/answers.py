"""What an engine answered, believed as far as it agrees with what it was sent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from filmroll.errors import EngineAnswerError, ReceiptError
from filmroll.render import Rendered
from filmroll.wire.capabilities import Way
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.generate import NO_EVIDENCE, Choice, GenerateAnswer, VersionSpan
from filmroll.wire.receipt import Receipt

_NAMED = 4
"""Images that an error names where the engine does not say which of them it is about."""
_BEFORE, _SHOWN = 4, 12
"""Tokens that an error shows before the first difference, and in all."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the engine sampled, by which policy version, and what the request weighed.

    `receipt` is what is known of the images. An engine that takes their URLs says only where it has
    placed them: then none counts as verified or decoded.
    """

    token_ids: list[int]
    logprobs: list[float]
    version: int
    finish_reason: str
    request_bytes: int
    receipt: Receipt


def completion(answer: GenerateAnswer, prompt: Rendered, way: Way, request_bytes: int) -> Completion:
    """The answer's only choice; an error where it does not fit the prompt or itself."""
    choice = answer.choices[0]
    placed = _compared(answer, prompt) if way == "content_parts" else None
    receipt = _receipt(answer, prompt.images) if placed is None or answer.receipt is not None else placed
    return Completion(
        choice.token_ids,
        _logprobs(choice),
        _version(choice.weight_versions),
        choice.finish_reason or "",
        request_bytes,
        receipt,
    )


def _logprobs(choice: Choice) -> list[float]:
    content = choice.logprobs.content if choice.logprobs else []
    if [entry.token_id for entry in content] != choice.token_ids or not choice.token_ids:
        raise EngineAnswerError(
            f"the answer has {len(choice.token_ids)} tokens but logprobs for {len(content)}, or for others",
            remedy="Ask the engine for logprobs of the sampled tokens",
        )
    logprobs = [entry.logprob for entry in content]
    if any(not math.isfinite(value) or value <= NO_EVIDENCE for value in logprobs):
        raise EngineAnswerError("the answer has a token without a logprob, it cannot be trained on")
    return logprobs


def _receipt(answer: GenerateAnswer, images: Sequence[ImageDescriptor]) -> Receipt:
    """The engine's receipt, if it has consumed every image it was sent."""
    receipt = answer.receipt or Receipt()
    if receipt != Receipt(*[len(images)] * 4):
        sent = ", ".join(f"{number} is {image.image.sha256[:16]}" for number, image in enumerate(images[:_NAMED]))
        raise ReceiptError(
            f"{len(images)} images were sent{f' (image {sent})' if sent else ''}, the engine's receipt is {receipt}",
            remedy="Nothing that it sampled is used; look for an engine that drops images",
        )
    return receipt


def _compared(answer: GenerateAnswer, prompt: Rendered) -> Receipt:
    """The engine has made the same tokens of the prompt as we have, and placed the images at the same ones."""
    expanded = prompt.expanded()
    ours, theirs = expanded.token_ids.tolist(), answer.prompt_token_ids
    if theirs is None:
        raise EngineAnswerError(
            "the engine does not say which tokens it has made of the prompt",
            remedy="vLLM does from 0.30 on; without, nobody knows what it saw",
            field="prompt_token_ids",
        )
    if ours != theirs:
        raise _other_tokens(ours, theirs, expanded.offsets)
    spans = [(offset, image.tokens) for offset, image in zip(expanded.offsets, prompt.images, strict=True)]
    placed = [(one.offset, one.length) for places in (answer.mm_placeholders or {}).values() for one in places]
    for index in range(max(len(spans), len(placed))):
        mine, other = spans[index : index + 1], placed[index : index + 1]
        if mine != other:
            raise EngineAnswerError(
                f"the engine has placed it at {_span(other)}, we at {_span(mine)}",
                remedy="Nothing that it sampled is used; renderer and engine need the same checkpoint",
                field="mm_placeholders",
                index=index,
            )
    return Receipt(referenced=len(spans), consumed=len(placed))


def _other_tokens(ours: list[int], theirs: list[int], offsets: Sequence[int]) -> EngineAnswerError:
    """The first difference, with both sides around it."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    place = next((place for place, (one, other) in pairs if one != other), min(len(ours), len(theirs)))
    start = max(0, place - _BEFORE)
    shown = " and ".join(
        f"{whose} {' '.join(map(str, tokens[start : start + _SHOWN])) or 'nothing'} ({len(tokens)} in all)"
        for whose, tokens in (("ours are", ours), ("the engine's", theirs))
    )
    return EngineAnswerError(
        f"the engine has made other tokens of the prompt: they differ at token {place}, from {start} on {shown}",
        remedy="Renderer and engine need the same checkpoint, image bounds included; "
        "text tokens belong to the renderer, image tokens are expanded by the engine",
        field="prompt_token_ids",
        index=max((index for index, offset in enumerate(offsets) if offset <= place), default=None),
    )


def _span(spans: list[tuple[int, int]]) -> str:
    return "no place" if not spans else f"token {spans[0][0]}, {spans[0][1]} long"


def _version(spans: Sequence[VersionSpan] | None) -> int:
    """The version that sampled the first token, -1 if the engine's label is no number."""
    label = spans[0].version if spans else ""
    return int(label) if label.isdecimal() else -1
