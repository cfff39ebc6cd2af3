"""Messages before rendering: their images are put into the store, their text is looked through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from filmroll.errors import PlaceholderTextError, RenderError
from filmroll.image import ImageRef
from filmroll.store.store import Store

Message = Mapping[str, Any]
"""A chat message as OpenAI's API and `renderers` write it; an image part's source may be an ImageRef."""


def store_images(messages: Sequence[Message], store: Store) -> list[dict[str, Any]]:
    """The same messages with every image written to the store and replaced by its ImageRef."""
    return [dict(message, content=_stored(message.get("content"), store)) for message in messages]


def images_of(messages: Sequence[Message]) -> list[ImageRef]:
    """The ImageRefs of messages that went through `store_images`, in the order of their pads."""
    return [part["image"] for message in messages for part in _parts(message.get("content")) if is_image(part)]


def is_image(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") in ("image", "image_url")


def refuse_placeholders(messages: Sequence[Message], tools: Sequence[Any] | None, texts: Sequence[str]) -> None:
    """PlaceholderTextError if any text spells a token that stands for an image."""
    for place, text in _texts(messages, tools):
        for placeholder in texts:
            if placeholder in text:
                raise PlaceholderTextError(
                    f"the text contains {placeholder!r}, which the model would read as part of an image",
                    remedy="Take it out, or write it differently, before the message is rendered",
                    field=place,
                )


def _stored(content: Any, store: Store) -> Any:
    if not isinstance(content, list):
        return content
    return [{"type": "image", "image": _put(part, store)} if is_image(part) else part for part in content]


def _put(part: Mapping[str, Any], store: Store) -> ImageRef:
    source = part.get("image", part.get("image_url"))
    if isinstance(source, Mapping):
        source = source.get("url")
    if source is None:
        raise RenderError(f"an image part names no image, it has the keys {sorted(part)}", field="content")
    return source if isinstance(source, ImageRef) else store.put(source)


def _parts(content: Any) -> list[Any]:
    return content if isinstance(content, list) else []


def _texts(messages: Sequence[Message], tools: Sequence[Any] | None) -> Iterator[tuple[str, str]]:
    for index, message in enumerate(messages):
        for key, value in message.items():
            yield from _strings(value, f"messages[{index}].{key}")
        yield f"messages[{index}].content", _joined(message.get("content"))
    yield from _strings(tools, "tools")


def _joined(content: Any) -> str:
    """Text parts as the renderer joins them: a token may be spelled across two of them."""
    return "".join(
        part if isinstance(part, str) else str(part.get("text", "\0")) if isinstance(part, Mapping) else "\0"
        for part in _parts(content)
    )


def _strings(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every string inside, keys included; image sources are no text."""
    if isinstance(value, str):
        yield place, value
    elif is_image(value):
        return
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield place, str(key)
            yield from _strings(item, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _strings(item, f"{place}[{index}]")
