"""Renderer: messages with images become tokens with placements, and turns extend each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from filmroll.errors import CheckpointError, FilmrollError, PrefixError, RenderError
from filmroll.families import Family, load_family
from filmroll.families.hub import model_folder
from filmroll.render.expand import Expanded, expand
from filmroll.render.messages import Message, images_of, refuse_placeholders, store_images
from filmroll.render.tokenizer import TextTokenizer
from filmroll.store.store import Store
from filmroll.wire.descriptor import ImageDescriptor


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt: logical tokens, the images of its pads in order, and what was sampled.

    `sampled` marks the logical tokens that a model produced, or would itself have produced.
    """

    logical: list[int]
    images: list[ImageDescriptor]
    family: Family
    sampled: list[bool] = field(default_factory=list)

    def expanded(self) -> Expanded:
        """The tokens that an engine is sent, with the offset of each image."""
        return expand(self.logical, self.images, self.family)


class Renderer:
    """Text by the `renderers` library with one pad per image; images by the family, from headers alone."""

    def __init__(self, text: Any, tokenizer: TextTokenizer, family: Family, store: Store) -> None:
        self._text = text
        self.tokenizer = tokenizer
        self.family = family
        self.store = store

    def ingest(self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None) -> list[dict[str, Any]]:
        """Refuse what spells a placeholder, then put the images into the store.

        It is the only part of rendering that touches a disk; messages that went through it before
        are rendered without.
        """
        refuse_placeholders(messages, tools, self.family.placeholders.texts)
        return store_images(messages, self.store)

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None, add_generation_prompt: bool = True
    ) -> Rendered:
        """A conversation from its beginning."""
        stored = self.ingest(messages, tools=tools)
        with _rendering():
            tokens = self._text.render(
                stored, tools=tools, add_generation_prompt=add_generation_prompt, process_multimodal=False
            )
        return self._rendered(tokens.token_ids, self._describe(stored), list(tokens.sampled_mask))

    def bridge(
        self,
        previous: Rendered,
        completion_ids: Sequence[int],
        new_messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
    ) -> Rendered:
        """The next turn: `previous`, what was sampled after it, then the new messages, token for token.

        PrefixError where the model's template cannot extend it so; then the conversation has to be
        rendered anew, as a branch of its own.
        """
        stored = self.ingest(new_messages, tools=tools)
        before = [*previous.logical, *completion_ids]
        if self.family.placeholders.pad in completion_ids:
            raise PrefixError("the completion contains an image placeholder, which nothing may sample")
        with _rendering():
            bridged = self._text.bridge_to_next_turn(
                previous.logical, list(completion_ids), stored, tools=tools, process_multimodal=False
            )
        if bridged is None or bridged.token_ids[: len(before)] != before:
            raise PrefixError(
                "the new messages do not extend the conversation so far token for token",
                remedy="Render the whole conversation anew, as a branch of its own",
            )
        sampled = [*previous.sampled, *([True] * len(completion_ids))]
        sampled += [False] * (len(bridged.token_ids) - len(sampled))
        return self._rendered(bridged.token_ids, [*previous.images, *self._describe(stored)], sampled)

    def parse(self, completion_ids: Sequence[int]) -> str:
        """The text that a completion says, without its stop token."""
        content: str = self._text.parse_response(list(completion_ids)).content
        return content

    @property
    def stop_token_ids(self) -> list[int]:
        ids: list[int] = self._text.get_stop_token_ids()
        return ids

    def _describe(self, stored: Sequence[Message]) -> list[ImageDescriptor]:
        return [self.family.describe(image) for image in images_of(stored)]

    def _rendered(self, logical: list[int], images: list[ImageDescriptor], sampled: list[bool]) -> Rendered:
        pads = int(np.count_nonzero(np.asarray(logical) == self.family.placeholders.pad))
        if pads != len(images):
            raise RenderError(
                f"the text renderer made {pads} image pads of {len(images)} images",
                remedy="Images belong in user and tool messages; the model's template drops them elsewhere",
            )
        return Rendered(logical, images, self.family, sampled)


@contextmanager
def _rendering() -> Iterator[None]:
    """What the text renderer raises about messages becomes a RenderError."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, NotImplementedError) as error:
        raise RenderError(f"these messages cannot be rendered: {error}") from error


def load_renderer(model_dir: str | Path, store: Store) -> Renderer:
    """The renderer of a checkpoint, writing images to `store`."""
    family = load_family(model_dir)
    if family.renderer is None:
        raise CheckpointError(
            f"no text renderer is known for this checkpoint of family {family.name!r}",
            remedy="Qwen3-VL, Qwen3.5, Qwen3.6 and Qwen3.8 have one",
        )
    tokenizer = TextTokenizer.load(model_folder(model_dir))
    return Renderer(_text_renderer(family.renderer, tokenizer), tokenizer, family, store)


def _text_renderer(name: str, tokenizer: TextTokenizer) -> Any:
    from renderers import config_from_name, create_renderer

    try:
        return create_renderer(tokenizer, config_from_name(name))
    except FilmrollError:
        raise
    except Exception as error:  # the library raises AssertionError, ValueError and others
        raise CheckpointError(
            f"the tokenizer does not serve the {name!r} renderer",
            remedy="Its special tokens must be in it",
            private=str(error),
        ) from error
