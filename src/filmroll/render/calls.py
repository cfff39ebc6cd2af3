"""How a chat template writes tool calls: found out by having it write some, and then read again.

Most write a JSON object for each call, with marks around one or around all of them. Where a template
does anything else, calls stay the text that they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from filmroll.errors import RenderError
from filmroll.render.answer import ToolCall
from filmroll.render.forms import INNARDS, PROBE, Forms
from filmroll.render.template import ChatTemplate

_NAMES = (f"{INNARDS}_one", f"{INNARDS}_two")
_ARGUMENTS = {INNARDS: f"{INNARDS} value"}
_json = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Calls:
    """What was read of an answer: the text around its calls, the calls, and those that are broken, as written."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    broken: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CallForm:
    """The marks before the first call, between two and after the last, and the keys of a call's object."""

    opening: re.Pattern[str]
    between: re.Pattern[str]
    closing: re.Pattern[str]
    name: str
    arguments: str

    @classmethod
    def of(cls, template: ChatTemplate, forms: Forms) -> CallForm | None:
        """The form in which the template writes calls; None where it is not one that can be read."""
        try:
            none, two = (_written(template, forms, names) for names in ((), _NAMES))
        except RenderError:
            return None
        if not two.endswith(none):
            return None
        text = two[: len(two) - len(none)]
        found = list(_objects(text))
        if len(found) != len(_NAMES):
            return None
        (first, first_end, value), (second, second_end, _) = found
        keys = {str(inner): key for key, inner in value.items()}
        opening, between, closing = text[:first], text[first_end:second], text[second_end:]
        if not opening.strip() or not between.strip() or not {_NAMES[0], str(_ARGUMENTS)} <= keys.keys():
            return None
        form = cls(_pattern(opening), _pattern(between), _pattern(closing), keys[_NAMES[0]], keys[str(_ARGUMENTS)])
        return form if [call.name for call in form.read(text).calls] == list(_NAMES) else None

    def read(self, text: str) -> Calls:
        """What an answer says and calls. What begins as a call and is none is broken, to where the next one begins."""
        around: list[str] = []
        calls: list[ToolCall] = []
        broken: list[str] = []
        at = 0
        while (start := self.opening.search(text, at)) is not None:
            around.append(text[at : start.start()])
            found, at = self._block(text, start.end())
            calls += found
            if at < 0:
                again = self.opening.search(text, start.end())
                at = len(text) if again is None else again.start()
                calls = calls[: len(calls) - len(found)]
                broken.append(text[start.start() : at].strip())
        around.append(text[at:])
        return Calls("".join(around).strip() if calls or broken else text, tuple(calls), tuple(broken))

    def _block(self, text: str, at: int) -> tuple[list[ToolCall], int]:
        """The calls between an opening and its closing, and where that ends; -1 if it is not as it should be."""
        calls: list[ToolCall] = []
        while True:
            call, at = self._call(text, _after_space(text, at))
            if call is None:
                return calls, -1
            calls.append(call)
            at = _after_space(text, at)
            if self.closing.pattern and (end := self.closing.match(text, at)):
                return calls, end.end()
            if more := self.between.match(text, at):
                at = more.end()
            else:
                return calls, -1 if self.closing.pattern else at

    def _call(self, text: str, at: int) -> tuple[ToolCall | None, int]:
        try:
            value, end = _json.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None, at
        if not isinstance(value, dict):
            return None, at
        name, arguments, named = value.get(self.name), value.get(self.arguments), value.get("id")
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            return None, at
        return ToolCall(name, arguments, named if isinstance(named, str) else None), end


def _written(template: ChatTemplate, forms: Forms, names: Sequence[str]) -> str:
    """What stands behind the text of an answer that calls these functions."""
    answer: dict[str, Any] = {"role": "assistant", "content": PROBE}
    if names:
        answer["tool_calls"] = [_call(number, name) for number, name in enumerate(names)]
    messages = [forms.dressed({"role": "user", "content": "x"}), forms.dressed(answer)]
    return template.write(messages, tools=[_tool(name) for name in _NAMES]).text.partition(PROBE)[2]


def _call(number: int, name: str) -> dict[str, Any]:
    # Some templates insist on names of nine letters and digits.
    function = {"name": name, "arguments": _ARGUMENTS}
    return {"type": "function", "id": f"{INNARDS}0000{number}", "function": function}


def _tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {INNARDS: {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "description": "x", "parameters": parameters}}


def _objects(text: str) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    """The outermost JSON objects of a text, and where each begins and ends."""
    at = 0
    while (begin := text.find("{", at)) >= 0:
        try:
            value, at = _json.raw_decode(text, begin)
        except ValueError:
            at = begin + 1
        else:
            yield begin, at, value


def _pattern(mark: str) -> re.Pattern[str]:
    """The mark, whatever white space is in it."""
    return re.compile(r"\s*".join(map(re.escape, mark.split())))


def _after_space(text: str, at: int) -> int:
    return len(text) - len(text[at:].lstrip())
