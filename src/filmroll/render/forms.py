"""Messages as chat templates take them.

Templates differ in what they read of a content, and given the wrong form they lose it in silence or print
the list as Python would. So each template is tried with a word that it cannot write by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from filmroll.errors import RenderError
from filmroll.render.messages import Message, is_image
from filmroll.render.template import ChatTemplate

PROBE, INNARDS = "qzxj", "jxzq"
"""Words that no template writes by itself."""
IMAGE = {"type": "image", "image": "an image"}
"""An image part as templates see it: they ask whether there is one, not which."""


class Forms:
    """What one template reads."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._takes = {role: self._forms(before, role) for role, before in _BEFORE.items()}

    def dressed(self, message: Message) -> dict[str, Any]:
        """A message as templates take it: no empty keys, images without sources, content in a form they read."""
        dressed = {key: value for key, value in message.items() if value is not None}
        content = dressed.get("content")
        if isinstance(content, list):
            content = [_part(part) for part in content]
        text, parts = self._takes.get(dressed["role"], (True, True))
        if isinstance(content, str) and parts and not text:
            content = [{"type": "text", "text": content}]
        elif isinstance(content, list) and text and not parts and all(part["type"] == "text" for part in content):
            content = "".join(part["text"] for part in content)
        if content is not None:
            dressed["content"] = content
        if isinstance(dressed.get("tool_calls"), list):
            dressed["tool_calls"] = [_call(call) for call in dressed["tool_calls"]]
        return dressed

    def _forms(self, before: Sequence[Mapping[str, Any]], role: str) -> tuple[bool, bool]:
        """Whether the template reads this role's content as a text, and whether as a list of parts.

        Given the wrong one, templates lose it in silence or print the list as Python would.
        """

        def reads(content: Any) -> bool:
            after = [_user("x")] if role == "system" else []
            for form in (_user, _user_in_parts):
                try:
                    earlier = [form("x") if one["role"] == "user" else one for one in before]
                    later = [form("x") for _ in after]
                    text = self._template.write([*earlier, {"role": role, "content": content}, *later]).text
                except RenderError:
                    continue
                if text.count(PROBE) == 1 and INNARDS not in text:
                    return True
            return False

        return reads(PROBE), reads([{"type": "text", "text": PROBE, INNARDS: INNARDS}])


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _user_in_parts(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text}]}


_BEFORE: dict[str, tuple[dict[str, Any], ...]] = {
    "system": (),
    "user": (),
    "assistant": (_user("x"),),
    "tool": (
        _user("x"),
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]},
    ),
}
"""What stands before a message of each role when a template is tried."""


def _part(part: Mapping[str, Any]) -> Mapping[str, Any]:
    if is_image(part):
        return IMAGE
    if part["type"] != "text":
        raise RenderError(f"a chat template takes no part of the type {part['type']!r}", field="content")
    return part


def _call(call: Any) -> Any:
    """A tool call whose arguments are an object, which OpenAI's API writes as JSON and templates iterate over."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}}
