"""Tool calls whose arguments are spelled out one by one, between marks.

What is no text stands there as JSON; texts stand as they are, so that `7` may be either: the tools tell.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from filmroll.render.answer import ToolCall
from filmroll.render.calls import NAMES, CallForm, Marks, Probe, Texts, after_space, mark
from filmroll.render.forms import INNARDS

_SPELLED = {f"{INNARDS}_a": f"{INNARDS} first", f"{INNARDS}_b": f"{INNARDS} second"}


@dataclass(frozen=True, slots=True)
class Spelling:
    """What stands before an argument's name, between that and its value, and behind it."""

    before_key: re.Pattern[str]
    before_value: re.Pattern[str]
    after_value: re.Pattern[str]


class SpelledCalls(CallForm):
    """`<tool_call>zoom <arg_key>x</arg_key> <arg_value>3</arg_value> </tool_call>`, and the like."""

    def __init__(self, marks: Marks, spelling: Spelling, name_ends: re.Pattern[str]) -> None:
        super().__init__(marks)
        self._spelling = spelling
        self._name_ends = name_ends

    @classmethod
    def of(cls, probe: Probe) -> SpelledCalls | None:
        text = probe.written(*(ToolCall(name, _SPELLED) for name in NAMES)) or ""
        words = [word for name in NAMES for word in (name, *(one for pair in _SPELLED.items() for one in pair))]
        found = [match.span() for match in re.finditer("|".join(map(re.escape, words)), text)]
        if [text[begin:end] for begin, end in found] != words:
            return None
        # Before the first name, then between each word and the next, then behind the last.
        ends = [0, *(end for _, end in found)]
        gaps = [text[end:begin] for end, begin in zip(ends, [*(begin for begin, _ in found), len(text)], strict=True)]
        opening, named, before_value, onward, again, between, *second, closing = gaps
        before_key = _common_end(named, onward)
        after_name, after_value = named.removesuffix(before_key), onward.removesuffix(before_key)
        if (
            [named, before_value, onward, again] != second
            or before_value != again
            or not all(one.strip() for one in (before_key, before_value, after_value))
            or not (between.startswith(after_value) and closing.startswith(after_value))
        ):
            return None
        between, closing = between.removeprefix(after_value), closing.removeprefix(after_value)
        marks = Marks.of(opening, between, closing)
        if marks is None or not closing.strip():
            return None
        spelling = Spelling(re.compile(mark(before_key)), _around(before_value), _around(after_value))
        follows = "|".join(map(mark, (before_key, closing, between)))
        return cls(marks, spelling, re.compile(rf"{mark(after_name)}(?=\s*(?:{follows}))"))

    def call(self, text: str, at: int, texts: Texts) -> tuple[ToolCall | None, int]:
        named = self._name_ends.search(text, at)
        if named is None or len(text[at : named.start()].split()) != 1:
            return None, at
        name, at = text[at : named.start()].strip(), named.end()
        arguments: dict[str, Any] = {}
        while (begun := self._spelling.before_key.match(text, after_space(text, at))) is not None:
            key_ends = self._spelling.before_value.search(text, begun.end())
            ends = self._spelling.after_value.search(text, key_ends.end()) if key_ends else None
            if key_ends is None or ends is None:
                return None, at
            key, value = text[begun.end() : key_ends.start()].strip(), text[key_ends.end() : ends.start()]
            # A mark that is missing must not swallow the call behind.
            if len(key.split()) != 1 or key in arguments or self._marks.opening.search(value):
                return None, at
            arguments[key] = value if (name, key) in texts else _read(value)
            at = ends.end()
        return ToolCall(name, arguments), at


def _common_end(one: str, other: str) -> str:
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False))
    return "".join(letter for letter, _ in alike)[::-1]


def _read(value: str) -> Any:
    try:
        return json.loads(value, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _around(text: str) -> re.Pattern[str]:
    """The mark beside a value: of its own white space there, no more is taken than the template writes."""
    inner = text.strip()
    before, after = text[: text.index(inner)], text[text.index(inner) + len(inner) :]
    return re.compile("".join([_optional(before), mark(inner), _optional(after)]))


def _optional(space: str) -> str:
    return f"(?:{re.escape(space)})?" if space else ""
