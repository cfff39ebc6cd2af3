"""Tokens of images and of the chat itself, spelled out in somebody's text: refused, or kept as the text they are.

A text is kept by a seam: a character that cannot be text, put inside what spells a token. Whatever a
template does with the text, no token is spelled any more; `TextTokenizer` encodes what stands on both
sides of a seam apart and leaves the seam out. So the tokens read as the text did, to the letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from filmroll.errors import PlaceholderTextError
from filmroll.render.messages import Message, is_image

Typed = Literal["refuse", "escape"]
"""What becomes of tokens that a text spells out."""

SEAM, OPENS, CLOSES = "\ufdd0", "\ufdd1", "\ufdd2"
"""Noncharacters, which Unicode keeps for use inside a program; the last two enclose what a template calls generated."""
_NO_SEAMS = {ord(mark): "\ufffd" for mark in (SEAM, OPENS, CLOSES)}


def without_marks(text: str) -> str:
    """A text without what only this program writes into texts; such characters become U+FFFD, as if unreadable."""
    return text.translate(_NO_SEAMS)


class Markup:
    """All that is a token by its spelling and must not be written by whoever writes text.

    `placeholders` stand for images, `special` are the tokenizer's special tokens. Added tokens that
    are not special, such as `<think>`, are text by the tokenizer's own word, and stay what they are.
    """

    def __init__(self, placeholders: Sequence[str], special: Sequence[str]) -> None:
        self._placeholders = frozenset(placeholders)
        self._spellings = tuple(sorted({*placeholders, *special} - {""}, key=len, reverse=True))
        self._first = re.compile("|".join(sorted({re.escape(text[0]) for text in self._spellings})) or "(?!)")

    def refuse(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> None:
        """PlaceholderTextError if a text spells a token.

        An assistant's words may spell what is no image's: a model can sample any such token, and its
        words come back as text when a conversation is rendered anew.
        """
        for index, message in enumerate(messages):
            refused = self._placeholders if message.get("role") == "assistant" else frozenset(self._spellings)
            for place, text in _texts(message, f"messages[{index}]"):
                self._refuse(place, text, refused)
        for place, text in _strings(tools, "tools"):
            self._refuse(place, text, frozenset(self._spellings))

    def plain(
        self, messages: Sequence[Message], tools: Sequence[Any] | None
    ) -> tuple[list[dict[str, Any]], list[Any] | None]:
        """The same texts with a seam in whatever spells a token."""
        return [self._message(message) for message in messages], None if tools is None else self._sewn(list(tools))

    def _refuse(self, place: str, text: str, refused: frozenset[str]) -> None:
        for start in self._starts(text):
            spelled = [one for one in self._spellings if one in refused and text.startswith(one, start)]
            if spelled:
                what = "as part of an image" if spelled[0] in self._placeholders else "as markup of the chat"
                raise PlaceholderTextError(
                    f"the text contains {spelled[0]!r}, which the model would read {what}",
                    remedy='Take it out, or have it kept as text: typed = "escape" in [render], or in load_renderer()',
                    field=place,
                )

    def _starts(self, text: str) -> list[int]:
        """Where something begins that spells a token; they may overlap."""
        found = (match.start() for match in self._first.finditer(text))
        return [start for start in found if text.startswith(self._spellings, start)]

    def _message(self, message: Message) -> dict[str, Any]:
        content = message.get("content")
        sewn = {key: self._sewn(value) for key, value in message.items() if key != "content"}
        if "content" in message:
            sewn["content"] = self._content(content) if isinstance(content, list) else self._sewn(content)
        return sewn

    def _sewn(self, value: Any) -> Any:
        if isinstance(value, str):
            text = without_marks(value)
            return _sew(text, [start + 1 for start in self._starts(text)])
        if isinstance(value, Mapping):
            return {self._sewn(key): self._sewn(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._sewn(item) for item in value]
        return value

    def _content(self, parts: Sequence[Any]) -> list[Any]:
        """Parts with seams also where a token is spelled across two of them."""
        texts = [without_marks(_text(part)) for part in parts]
        seams = [start + 1 for start in self._starts("".join(texts))]
        sewn: list[Any] = []
        begin = 0
        for part, text in zip(parts, texts, strict=True):
            here = _sew(text, [seam - begin for seam in seams if 0 <= seam - begin < len(text)])
            begin += len(text)
            if isinstance(part, str):
                sewn.append(here)
            elif is_image(part) or not isinstance(part, Mapping):
                sewn.append(part)
            else:
                sewn.append(self._sewn(part) | ({"text": here} if "text" in part else {}))
        return sewn


def _sew(text: str, seams: Sequence[int]) -> str:
    return SEAM.join(text[begin:end] for begin, end in pairwise([0, *seams, len(text)]))


def _text(part: Any) -> str:
    """A part's text as the renderer joins it with others; a zero where something else stands between texts."""
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and not is_image(part) and isinstance(part.get("text"), str):
        return str(part["text"])
    return "\0"


def _texts(message: Message, place: str) -> Iterator[tuple[str, str]]:
    for key, value in message.items():
        if key == "content" and isinstance(value, list):
            yield f"{place}.content", "".join(map(_text, value))
            value = [part for part in value if not is_image(part)]
        yield from _strings(value, f"{place}.{key}")


def _strings(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every string inside, keys included."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield place, str(key)
            yield from _strings(item, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _strings(item, f"{place}[{index}]")
