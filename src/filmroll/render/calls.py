"""How a chat template writes tool calls: found out by having it write some, and then read again.

Templates write a JSON object for each call, or its name and a JSON object of arguments (`json_calls`), or spell
the arguments out one by one (`spelled_calls`), with marks around one or around all of them. Where a template does
anything else, calls stay the text that they are.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from filmroll.render.answer import ToolCall
from filmroll.render.forms import INNARDS, PROBE, Forms
from filmroll.render.template import ChatTemplate

NAMES = (f"{INNARDS}_one", f"{INNARDS}_two")
"""Of the functions that a probe calls."""
Texts = frozenset[tuple[str, str]]
"""The arguments that are texts, each with its function."""


@dataclass(frozen=True, slots=True)
class Calls:
    """What was read of an answer: the text around its calls, the calls, and those that are broken, as written."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    broken: tuple[str, ...] = ()


class Probe:
    """Has a template write calls of functions that there are not."""

    def __init__(self, template: ChatTemplate, forms: Forms) -> None:
        self._template = template
        self._forms = forms

    def written(self, *calls: ToolCall) -> str | None:
        """What stands behind the text of an answer because of its calls; None if that is not all that changes."""
        none, text = self._behind([]), self._behind(calls)
        return text.removesuffix(none) if text.endswith(none) else None

    def _behind(self, calls: Sequence[ToolCall]) -> str:
        answer: dict[str, Any] = {"role": "assistant", "content": PROBE}
        if calls:
            # Some templates insist on names of nine letters and digits.
            answer["tool_calls"] = [
                {
                    "type": "function",
                    "id": f"{INNARDS}0000{number}",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for number, call in enumerate(calls)
            ]
        messages = [self._forms.dressed({"role": "user", "content": "x"}), self._forms.dressed(answer)]
        return self._template.write(messages, tools=[_tool(name) for name in NAMES]).text.partition(PROBE)[2]


@dataclass(frozen=True, slots=True)
class Marks:
    """What stands before the first call, between two and after the last."""

    opening: re.Pattern[str]
    between: re.Pattern[str]
    closing: re.Pattern[str]

    @classmethod
    def of(cls, opening: str, between: str, closing: str) -> Marks | None:
        """None where text could be taken for calls."""
        if not opening.strip() or not between.strip():
            return None
        return cls(*(re.compile(mark(text)) for text in (opening, between, closing)))


class CallForm(ABC):
    """A way of writing calls."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks

    @abstractmethod
    def call(self, text: str, at: int, texts: Texts) -> tuple[ToolCall | None, int]:
        """The call that stands here, and where it ends; None for what is none."""

    def read(self, text: str, tools: Sequence[Any] | None = None) -> Calls:
        """What an answer says and calls. What begins as a call and is none is broken, to where the next one begins.

        `tools` tell what is a text in ways of writing that do not.
        """
        texts, opening = _texts(tools), self._marks.opening
        around: list[str] = []
        calls: list[ToolCall] = []
        broken: list[str] = []
        at = 0
        while (start := opening.search(text, at)) is not None:
            around.append(text[at : start.start()])
            found, at = self._block(text, start.end(), texts)
            if at < 0:
                again = opening.search(text, start.end())
                at = len(text) if again is None else again.start()
                broken.append(text[start.start() : at].strip())
            else:
                calls += found
        around.append(text[at:])
        return Calls("".join(around).strip() if calls or broken else text, tuple(calls), tuple(broken))

    def _block(self, text: str, at: int, texts: Texts) -> tuple[list[ToolCall], int]:
        """The calls between an opening and its closing, and where that ends; -1 if it is not as it should be."""
        closing = self._marks.closing
        calls: list[ToolCall] = []
        while True:
            call, at = self.call(text, after_space(text, at), texts)
            if call is None:
                return calls, -1
            calls.append(call)
            at = after_space(text, at)
            if closing.pattern and (end := closing.match(text, at)):
                return calls, end.end()
            if more := self._marks.between.match(text, at):
                at = more.end()
            else:
                return calls, -1 if closing.pattern else at


def mark(text: str) -> str:
    """A pattern of what stands around calls, whatever white space is in it."""
    return r"\s*".join(map(re.escape, text.split()))


def after_space(text: str, at: int) -> int:
    return len(text) - len(text[at:].lstrip())


def _tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {INNARDS: {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "description": "x", "parameters": parameters}}


def _texts(tools: Sequence[Any] | None) -> Texts:
    """By the tools' own word; what is no tool, or says nothing of its arguments, is passed over."""
    found = set()
    for tool in tools or ():
        function = _within(tool, "function") or tool
        for name, schema in _within(_within(function, "parameters"), "properties").items():
            if isinstance(schema, Mapping) and schema.get("type") == "string":
                found.add((str(function.get("name")), str(name)))
    return frozenset(found)


def _within(value: Any, key: str) -> Mapping[str, Any]:
    inner = value.get(key) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}
