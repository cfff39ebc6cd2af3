"""What a model has said: its text, and beside it what is no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from filmroll.render.messages import Message


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model calls. Whether there is one, and takes such arguments, is for its owner to say."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None
    """What the model itself calls this call, where its way of writing has such names."""


class Answer(str):
    """The text that a model says, a str like any other.

    What it thought before and which tools it calls are beside the text, as far as the model's way of
    writing tells them apart.
    """

    reasoning: str | None
    tool_calls: tuple[ToolCall, ...]
    broken_calls: tuple[str, ...]
    """Calls that cannot be read, as they were written."""
    message: Message
    """All of it as a chat message: rendered again, nothing is lost."""

    def __new__(
        cls,
        text: str,
        *,
        reasoning: str | None = None,
        tool_calls: Sequence[ToolCall] = (),
        broken_calls: Sequence[str] = (),
        inline: str | None = None,
    ) -> Self:
        """`inline` is text and reasoning as they were written, for a template that reads both from the content."""
        made = super().__new__(cls, text)
        made.reasoning = reasoning
        made.tool_calls = tuple(tool_calls)
        made.broken_calls = tuple(broken_calls)
        content = text if inline is None else inline
        message: dict[str, Any] = {"role": "assistant", "content": "\n".join([*filter(None, [content]), *broken_calls])}
        if reasoning and inline is None:
            message["reasoning_content"] = reasoning
        if tool_calls:
            message["tool_calls"] = [_message_of(call) for call in tool_calls]
        made.message = message
        return made


def _message_of(call: ToolCall) -> dict[str, Any]:
    named = {} if call.id is None else {"id": call.id}
    return {**named, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
