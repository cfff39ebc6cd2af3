"""Messages before rendering: their images are put into the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from filmroll.errors import RenderError
from filmroll.image import ImageRef
from filmroll.store.store import Store

Message = Mapping[str, Any]
"""A chat message as OpenAI's API and `renderers` write it; an image part's source may be an ImageRef."""


def check_messages(messages: Sequence[Message]) -> None:
    """RenderError unless each is a message at all: an object with a role."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise RenderError(f"messages are a list, this is a {type(messages).__name__}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            what = repr(message)[:200]
            raise RenderError(
                "a message is an object with a role and a content", field=f"messages[{index}]", private=what
            )


def store_images(messages: Sequence[Message], store: Store) -> list[dict[str, Any]]:
    """The same messages with every image written to the store and replaced by its ImageRef."""
    return [_with_stored_images(message, store) for message in messages]


def images_of(messages: Sequence[Message]) -> list[ImageRef]:
    """The ImageRefs of messages that went through `store_images`, in the order of their pads."""
    return [part["image"] for message in messages for part in _parts(message.get("content")) if is_image(part)]


def is_image(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") in ("image", "image_url")


def _with_stored_images(message: Message, store: Store) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    return dict(message, content=[_stored(part, store) if is_image(part) else worded(part) for part in content])


def _stored(part: Mapping[str, Any], store: Store) -> dict[str, Any]:
    source = part.get("image", part.get("image_url"))
    if isinstance(source, Mapping):
        source = source.get("url")
    if source is None:
        raise RenderError(f"an image part names no image, it has the keys {sorted(map(str, part))}", field="content")
    return {"type": "image", "image": source if isinstance(source, ImageRef) else store.put(source)}


def worded(part: Any) -> dict[str, Any]:
    """A part that is no image, in the one form that every text renderer reads; some leave out others in silence."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Mapping):
        kind = part.get("type", "text")
        if kind in ("text", "thinking") and isinstance(part.get(kind), str):
            return {**part, "type": kind}
    what = part.get("type", "an object of no type") if isinstance(part, Mapping) else type(part).__name__
    raise RenderError(f"a content part is neither text nor an image, but {str(what)[:64]!r}", field="content")


def _parts(content: Any) -> list[Any]:
    return content if isinstance(content, list) else []
