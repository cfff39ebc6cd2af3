"""What makes a message one that can be learnt from, whichever model learns it.

Text renderers do not agree on what they refuse: some leave out in silence what they do not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from filmroll.errors import DatasetError

SPEAKERS = ("system", "user", "assistant", "tool")


def check_message(message: Mapping[str, Any], place: str) -> None:
    """A DatasetError for a role that nobody has, a message that says nothing, and calls that are none."""
    role = message["role"]
    if role not in SPEAKERS:
        raise DatasetError(
            f"nobody has the role {role[:40]!r}", remedy=f"It is one of {', '.join(SPEAKERS)}", field=f"{place}.role"
        )
    reasoning, calls = message.get("reasoning_content"), message.get("tool_calls")
    if reasoning is not None and not isinstance(reasoning, str):
        raise DatasetError(f"reasoning is a text, this is {_shown(reasoning)}", field=f"{place}.reasoning_content")
    if calls is not None and not isinstance(calls, list):
        raise DatasetError(f"calls of tools are a list, this is {_shown(calls)}", field=f"{place}.tool_calls")
    for number, call in enumerate(calls or []):
        _check_call(call, f"{place}.tool_calls[{number}]")
    if message.get("content") is None and not (role == "assistant" and (calls or reasoning)):
        raise DatasetError("the message says nothing: it has no content", field=place)


def _check_call(call: Any, place: str) -> None:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise DatasetError(f"a call names its function, this is {_shown(call)}", field=place)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"the arguments are no JSON: {error}", field=f"{place}.function.arguments") from None
    if arguments is not None and not isinstance(arguments, Mapping):
        raise DatasetError(
            f"arguments are an object, or one as JSON, this is {_shown(arguments)}",
            field=f"{place}.function.arguments",
        )


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}"
