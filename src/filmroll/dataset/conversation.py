"""A row as a conversation: messages whose images stand where they belong, and the tools that it tells of.

Images may be among the messages, as OpenAI's API and transformers write them; or in a list of the row,
which parts without a source take in turn, or by `index`; or so at literal placeholders in the text.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filmroll.dataset.config import DataConfig
from filmroll.dataset.message import check_message
from filmroll.errors import DatasetError, RenderError
from filmroll.render.messages import is_image, worded

PLACEHOLDER = "<image>"
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
"""Who speaks in the form sharegpt."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a renderer takes."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None

    @property
    def images(self) -> list[Any]:
        """The sources of its images, in order."""
        contents = [message.get("content") for message in self.messages]
        return [
            part["image"] for content in contents if isinstance(content, list) for part in content if is_image(part)
        ]


class Reader:
    """Reads rows as a `[data]` section says that they are written."""

    def __init__(self, config: DataConfig, root: Path) -> None:
        self._config = config
        self._root = Path(config.image_root).expanduser() if config.image_root else root

    def read(self, row: Mapping[str, Any]) -> Conversation:
        """A DatasetError names the field that is wrong."""
        field = self._config.messages or ("messages" if self._config.form == "openai" else "conversations")
        if field not in row:
            raise DatasetError(f"the row has no {field!r}, it has {', '.join(map(repr, row))}"[:300], field=field)
        turns = row[field]
        if not isinstance(turns, list) or not turns:
            raise DatasetError(f"messages are a list that is not empty, this is {str(turns)[:60]!r}", field=field)
        images = _Images(self._listed(row), self._resolved)
        messages = []
        for number, turn in enumerate(turns):
            messages.append(self._message(turn, images, f"{field}[{number}]"))
            check_message(messages[-1], f"{field}[{number}]")
        images.check_used()
        if not any(message["role"] == "assistant" for message in messages):
            raise DatasetError("no message is the assistant's, so there is nothing to learn", field=field)
        return Conversation(messages, self._tools(row))

    def _listed(self, row: Mapping[str, Any]) -> list[Any]:
        names = [self._config.images] if self._config.images else ["images", "image"]
        found = next((row[name] for name in names if row.get(name) is not None), None)
        if found is None and self._config.images and self._config.images not in row:
            raise DatasetError(f"the row has no {self._config.images!r}", field=self._config.images)
        return found if isinstance(found, list) else [] if found is None else [found]

    def _tools(self, row: Mapping[str, Any]) -> list[Any] | None:
        tools = row.get(self._config.tools)
        if isinstance(tools, str):
            # Tables keep them as JSON: a column has one shape, and tools have many.
            try:
                tools = json.loads(tools)
            except (ValueError, RecursionError) as error:
                raise DatasetError(f"tools are a list, or one as JSON: {error}", field=self._config.tools) from None
        if tools is not None and not isinstance(tools, list):
            raise DatasetError(f"tools are a list, this is a {type(tools).__name__}", field=self._config.tools)
        return tools or None

    def _message(self, turn: Any, images: _Images, place: str) -> dict[str, Any]:
        if not isinstance(turn, Mapping):
            raise DatasetError(f"a message is an object, this is a {type(turn).__name__}", field=place)
        if self._config.form == "sharegpt":
            turn = _turned(turn, place)
        if not isinstance(turn.get("role"), str):
            raise DatasetError(f"a message has a role, this one has {', '.join(map(repr, turn))}"[:200], field=place)
        content = turn.get("content")
        if isinstance(content, str):
            pieces = self._pieces(content, images, f"{place}.content")
            return {**turn, "content": content if len(pieces) == 1 else pieces}
        if isinstance(content, list):
            parts = [
                piece
                for number, part in enumerate(content)
                for piece in self._part(part, images, f"{place}.content[{number}]")
            ]
            return {**turn, "content": parts}
        if content is not None:
            raise DatasetError(f"a content is a text or a list of parts, this is {str(content)[:60]!r}", field=place)
        return dict(turn)

    def _part(self, part: Any, images: _Images, place: str) -> list[dict[str, Any]]:
        if isinstance(part, str):
            return self._pieces(part, images, place)
        if not isinstance(part, Mapping):
            raise DatasetError(f"a content part is an object, this is a {type(part).__name__}", field=place)
        if is_image(part):
            source = _source(part, place)
            given = images.take(part.get("index"), place) if source is None else self._resolved(source, place)
            return [{"type": "image", "image": given}]
        if part.get("type", "text") == "text" and isinstance(part.get("text"), str):
            return self._pieces(part["text"], images, place)
        try:
            return [worded(part)]
        except RenderError as error:
            raise DatasetError(error.problem, field=place) from None

    def _pieces(self, text: str, images: _Images, place: str) -> list[dict[str, Any]]:
        """A text in parts, an image at each placeholder if that is what placeholders are."""
        if PLACEHOLDER not in text or self._config.placeholders == "text":
            return [{"type": "text", "text": text}]
        if self._config.placeholders == "refuse":
            raise DatasetError(
                f"the text holds {PLACEHOLDER!r}, which a model would read as these letters and not as a picture",
                remedy='Say what it is: data.placeholders = "image" for the next of the row\'s images, or "text"',
                field=place,
            )
        first, *rest = text.split(PLACEHOLDER)
        pieces = [{"type": "text", "text": first}]
        for after in rest:
            pieces += [{"type": "image", "image": images.take(None, place)}, {"type": "text", "text": after}]
        return [piece for piece in pieces if piece.get("text") != ""]

    def _resolved(self, source: Any, place: str) -> Any:
        """What a store takes: bytes, a URI, or a path that begins at the root."""
        if isinstance(source, Mapping):
            source = source.get("bytes") if source.get("bytes") is not None else source.get("path", source.get("url"))
        if isinstance(source, bytes) or (isinstance(source, str) and (source[:5] == "data:" or "://" in source[:12])):
            return source
        if isinstance(source, str) and source:
            return str(self._root / Path(source).expanduser())
        raise DatasetError(
            f"an image is bytes, a path or a URI, this is {type(source).__name__} {str(source)[:40]!r}", field=place
        )


class _Images:
    """The images that stand beside a row's messages, until each has been shown."""

    def __init__(self, listed: Sequence[Any], resolved: Callable[[Any, str], Any]) -> None:
        self._listed = listed
        self._resolved = resolved
        self._next = 0
        self._used: set[int] = set()

    def take(self, index: Any, place: str) -> Any:
        """The next of them, or the one of that number."""
        if index is None:
            index, self._next = self._next, self._next + 1
        if not isinstance(index, int) or not 0 <= index < len(self._listed):
            raise DatasetError(f"it shows image {index} of the row, which has {len(self._listed)}", field=place)
        self._used.add(index)
        return self._resolved(self._listed[index], f"images[{index}]")

    def check_used(self) -> None:
        if len(self._used) < len(self._listed):
            left = min(set(range(len(self._listed))) - self._used)
            raise DatasetError(
                f"no message shows it: the row has {len(self._listed)} images, its messages show {len(self._used)}",
                remedy='Put {"type": "image"} parts where they belong',
                field=f"images[{left}]",
            )


def _turned(turn: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A message of the form sharegpt in OpenAI's."""
    speaker = turn.get("from")
    if speaker not in ROLES:
        raise DatasetError(f"from is {str(speaker)[:40]!r}", remedy=f"It is one of {', '.join(ROLES)}", field=place)
    return {"role": ROLES[speaker], "content": turn.get("value")}


def _source(part: Mapping[str, Any], place: str) -> Any:
    """What an image part itself says of where its image is; nothing where it only marks a place."""
    if part.get("base64") is not None:
        try:
            return base64.b64decode(part["base64"], validate=True)
        except (binascii.Error, ValueError, TypeError):
            raise DatasetError("base64 is not the base64 of an image's file", field=place) from None
    source = next((part[key] for key in ("image", "image_url", "url", "path") if part.get(key) is not None), None)
    return source.get("url") if isinstance(source, Mapping) and "url" in source else source
