"""What an answer of vLLM's says: tokens, or that something failed; and what is added to it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from filmroll.wire.receipt import Receipt

FAILED_CHUNK = 'data: {"error"'
"""What a stream says instead of tokens."""


async def begun(answer: Any) -> Any:
    """The answer; of a stream, once it is known that the engine has not failed before its first tokens."""
    if not isinstance(answer, AsyncGenerator):
        return answer
    first = await anext(answer)
    if first.startswith(FAILED_CHUNK):
        from vllm.exceptions import GenerationError

        await answer.aclose()
        raise GenerationError
    return _after(first, answer)


async def _after(first: str, rest: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    async with aclosing(rest):
        yield first
        async for chunk in rest:
            yield chunk


def is_refusal(answer: Any) -> bool:
    """Whether vLLM answers with an error instead of raising it."""
    return hasattr(answer, "error")


def with_receipt(answer: Any, receipt: Receipt) -> Any:
    """The answer and the receipt beside it; errors and streams go as they are."""
    return _with(answer, receipt=msgspec.to_builtins(receipt)) if _is_whole(answer) else answer


def with_version(answer: Any, version: int) -> Any:
    """The answer, each choice named as sampled by this version of the weights: what vLLM says itself from 0.32 on."""
    if not _is_whole(answer) or any(hasattr(choice, "weight_versions") for choice in answer.choices):
        return answer
    label = str(version)
    spans = [[{"version": label, "start": 0, "end": len(choice.token_ids)}] for choice in answer.choices]
    pairs = zip(answer.choices, spans, strict=True)
    return _with(answer, choices=[_with(choice, weight_versions=span) for choice, span in pairs])


def _is_whole(answer: Any) -> bool:
    """Whether it is an answer, and neither an error nor a stream."""
    from pydantic import BaseModel

    return isinstance(answer, BaseModel) and hasattr(answer, "choices")


def _with(model: Any, **fields: Any) -> Any:
    kind: Any = type(model)
    return _widened(kind, tuple(fields)).model_construct(**dict(model) | fields)


@cache
def _widened(kind: Any, names: tuple[str, ...]) -> Any:
    """A kind of pydantic's models with fields of these names, which are written as what they hold."""
    from pydantic import create_model

    fields: dict[str, Any] = dict.fromkeys(names, (Any, ...))
    return create_model(kind.__name__, __base__=kind, **fields)


def failed_inside(error: BaseException) -> bool:
    """Whether the engine itself failed on a request, as it does for an image that it was told to have."""
    from vllm.exceptions import GenerationError

    return isinstance(error, GenerationError)
