"""From messages to a prompt: images into the store, words into tokens, by the model's own way of writing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from filmroll.engine.chat.request import Assistant, ChatRequest, Developer, ImagePart, Message, TextPart, Tool
from filmroll.engine.images.content import MAX_IMAGES, stored
from filmroll.engine.images.resolve import named
from filmroll.errors import FilmrollError, RequestError
from filmroll.image import ImageRef
from filmroll.render import Rendered, Renderer
from filmroll.store import Store


def keep_images(request: ChatRequest, store: Store) -> dict[str, ImageRef]:
    """Every image of the messages in the store, by its url."""
    kept: dict[str, ImageRef] = {}
    for index, (where, url) in enumerate(_urls(request.messages)):
        if index == MAX_IMAGES:
            raise RequestError(f"there are more than {MAX_IMAGES} images", field="messages")
        if url not in kept:
            with named(where, index):
                kept[url] = stored(url, store)
    return kept


def write_prompt(request: ChatRequest, kept: dict[str, ImageRef], renderer: Renderer) -> Rendered:
    """The messages in tokens, up to where the model is to speak."""
    messages = [_plain(message, kept) for message in request.messages]
    try:
        with named("messages"):
            return renderer.render(messages, tools=request.functions)
    except RecursionError:
        raise RequestError("the tools, or a call's arguments, are nested too deeply", field="tools") from None
    except FilmrollError as error:
        # Whose template it is does not matter: these messages are not for this model.
        raise error if error.status < 500 else RequestError(error.problem, field="messages") from error


def _urls(messages: list[Message]) -> Iterator[tuple[str, str]]:
    for number, message in enumerate(messages):
        if isinstance(message.content, list):
            for place, part in enumerate(message.content):
                if isinstance(part, ImagePart):
                    yield f"messages[{number}].content[{place}].image_url", _url(part)


def _url(part: ImagePart) -> str:
    return part.image_url if isinstance(part.image_url, str) else part.image_url.url


def _plain(message: Message, kept: dict[str, ImageRef]) -> dict[str, Any]:
    """A message as renderers read it."""
    content: Any = message.content
    if isinstance(content, list):
        content = [_part(part, kept) for part in content]
    if isinstance(message, Assistant):
        said: dict[str, Any] = {"role": "assistant", "content": content or ""}
        if message.reasoning_content is not None:
            said["reasoning_content"] = message.reasoning_content
        if message.tool_calls:
            said["tool_calls"] = msgspec.to_builtins(message.tool_calls)
        return said
    if isinstance(message, Tool):
        named_ = {} if message.name is None else {"name": message.name}
        return {"role": "tool", "content": content, "tool_call_id": message.tool_call_id, **named_}
    # Templates know the developer by the older name.
    role = "system" if isinstance(message, Developer) else message.__struct_config__.tag
    return {"role": role, "content": content}


def _part(part: TextPart | ImagePart, kept: dict[str, ImageRef]) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": "image", "image": kept[_url(part)]}
