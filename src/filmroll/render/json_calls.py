"""Tool calls as JSON: an object for each call, or a name and an object of arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from filmroll.render.answer import ToolCall
from filmroll.render.calls import NAMES, CallForm, Marks, Probe, Texts, after_space, mark
from filmroll.render.forms import INNARDS

_ARGUMENTS = {INNARDS: f"{INNARDS} value"}
_json = json.JSONDecoder()


class ObjectCalls(CallForm):
    """`{"name": "zoom", "arguments": {"x": 3}}`, under whichever keys."""

    def __init__(self, marks: Marks, name: str, arguments: str) -> None:
        super().__init__(marks)
        self._name = name
        self._arguments = arguments

    @classmethod
    def of(cls, probe: Probe) -> ObjectCalls | None:
        text = probe.written(*(ToolCall(name, _ARGUMENTS) for name in NAMES)) or ""
        found = list(_objects(text))
        if len(found) != len(NAMES):
            return None
        (first, first_end, value), (second, second_end, _) = found
        keys = {str(inner): key for key, inner in value.items()}
        marks = Marks.of(text[:first], text[first_end:second], text[second_end:])
        if marks is None or not {NAMES[0], str(_ARGUMENTS)} <= keys.keys():
            return None
        return cls(marks, keys[NAMES[0]], keys[str(_ARGUMENTS)])

    def call(self, text: str, at: int, texts: Texts) -> tuple[ToolCall | None, int]:
        del texts  # JSON says itself of what kind a value is.
        value, end = _object(text, at)
        if value is None:
            return None, at
        name, arguments, named = value.get(self._name), value.get(self._arguments), value.get("id")
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            return None, at
        return ToolCall(name, arguments, named if isinstance(named, str) else None), end


class NamedCalls(CallForm):
    """`zoom[ARGS]{"x": 3}`, with whatever mark in the middle."""

    def __init__(self, marks: Marks, middle: re.Pattern[str]) -> None:
        super().__init__(marks)
        self._middle = middle

    @classmethod
    def of(cls, probe: Probe) -> NamedCalls | None:
        text = probe.written(*(ToolCall(name, _ARGUMENTS) for name in NAMES)) or ""
        found = [(begin, end) for begin, end, value in _objects(text) if value == _ARGUMENTS]
        if len(found) != len(NAMES) or any(text.count(name) != 1 for name in NAMES):
            return None
        (first, first_end), (second, second_end) = found
        begins = [text.index(name) for name in NAMES]
        middles = [text[begin + len(name) : at] for begin, name, at in zip(begins, NAMES, (first, second), strict=True)]
        marks = Marks.of(text[: begins[0]], text[first_end : begins[1]], text[second_end:])
        if marks is None or middles[0] != middles[1] or not middles[0].strip():
            return None
        return cls(marks, re.compile(mark(middles[0])))

    def call(self, text: str, at: int, texts: Texts) -> tuple[ToolCall | None, int]:
        del texts
        if (middle := self._middle.search(text, at)) is None:
            return None, at
        name = text[at : middle.start()].strip()
        arguments, end = _object(text, middle.end())
        if arguments is None or len(name.split()) != 1:
            return None, at
        return ToolCall(name, arguments), end


def _object(text: str, at: int) -> tuple[dict[str, Any] | None, int]:
    """The JSON object that begins here or behind white space, and where it ends."""
    try:
        value, end = _json.raw_decode(text, after_space(text, at))
    except (ValueError, RecursionError):
        return None, at
    return (value, end) if isinstance(value, dict) else (None, at)


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
