"""Renderer: messages with images become tokens with placements, and turns extend each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filmroll.errors import ConfigError, PrefixError, PromptTooLongError, RenderError
from filmroll.families import Family, load_family
from filmroll.families.base import Arrays
from filmroll.families.checkpoint import read_checkpoint
from filmroll.families.hub import model_folder
from filmroll.render.answer import Answer
from filmroll.render.expand import Expanded, expand
from filmroll.render.markup import Markup, Typed
from filmroll.render.messages import Message, check_messages, images_of, store_images
from filmroll.render.templated import TemplateText
from filmroll.render.text import LibraryText, TextRenderer, Tokens, Transcript
from filmroll.render.tokenizer import TextTokenizer
from filmroll.store.store import Store
from filmroll.wire.descriptor import ImageDescriptor

Process = Callable[[Sequence[ImageDescriptor]], Arrays]
"""Verified tensors of these images."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt: logical tokens, the images of its pads in order, and what was sampled.

    `sampled` marks the logical tokens that a model produced, or would itself have produced.
    """

    logical: list[int]
    images: list[ImageDescriptor]
    family: Family
    sampled: list[bool] = field(default_factory=list)
    transcript: Transcript | None = field(default=None, repr=False)
    """What a chat template needs to go on from here."""
    process: Process | None = field(default=None, repr=False, compare=False)

    @property
    def features(self) -> Arrays:
        """In mode processed the images' tensors, by the names of the model's own processor; in any other none."""
        return self.process(self.images) if self.process is not None else {}

    def expanded(self) -> Expanded:
        """The tokens that an engine is sent, with the offset of each image."""
        return expand(self.logical, self.images, self.family)

    @property
    def expanded_length(self) -> int:
        """How many tokens an engine is sent."""
        return len(self.logical) + sum(image.tokens - 1 for image in self.images)


class Renderer:
    """Text with one pad per image; images by the family, from headers alone. Safe to use from several threads."""

    def __init__(
        self,
        text: TextRenderer,
        tokenizer: TextTokenizer,
        family: Family,
        store: Store,
        *,
        typed: Typed = "refuse",
        max_tokens: int | None = None,
        process: Process | None = None,
    ) -> None:
        self._process = process
        self._text = text
        self._markup = Markup(family.placeholders.texts, list(tokenizer.special))
        self._typed = typed
        self.tokenizer = tokenizer
        self.family = family
        self.store = store
        self.max_tokens = max_tokens

    def ingest(self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None) -> list[dict[str, Any]]:
        """Refuse what spells a token, unless that is to be escaped, then put the images into the store.

        It is the only part of rendering that touches a disk; messages that went through it before
        are rendered without.
        """
        self.check(messages, tools=tools)
        return store_images(messages, self.store)

    def check(self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None) -> None:
        """RenderError for what can be told without an image: what is no message, and what spells a token."""
        check_messages(messages)
        if self._typed == "refuse":
            self._markup.refuse(messages, tools)

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None, add_generation_prompt: bool = True
    ) -> Rendered:
        """A conversation from its beginning."""
        if not messages:
            raise RenderError("there are no messages to render", remedy="A conversation begins with one")
        stored = self.ingest(messages, tools=tools)
        plain, plain_tools = self._markup.plain(stored, tools)
        with _rendering():
            tokens = self._text.render(plain, tools=plain_tools, add_generation_prompt=add_generation_prompt)
        return self._rendered(tokens, self._describe(stored), tokens.sampled)

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
        if self.family.placeholders.pad in completion_ids:
            raise PrefixError("the completion contains an image placeholder, which nothing may sample")
        plain, plain_tools = self._markup.plain(stored, tools)
        before = [*previous.logical, *completion_ids]
        with _rendering(), _bridging():
            tokens = self._text.extend(_tokens(previous), completion_ids, plain, tools=plain_tools)
            if tokens.ids[: len(before)] != before:
                raise PrefixError("the new messages do not extend the conversation so far token for token")
        sampled = [*previous.sampled, *([True] * len(completion_ids))]
        sampled += [False] * (len(tokens.ids) - len(sampled))
        return self._rendered(tokens, [*previous.images, *self._describe(stored)], sampled)

    def parse(
        self, completion_ids: Sequence[int], *, prompt: Rendered | None = None, tools: Sequence[Any] | None = None
    ) -> Answer:
        """What a completion says, without its stop token: the text, and beside it reasoning and tool calls.

        The prompt tells whether reasoning had begun before the completion, the tools of what type
        arguments are, where the model's way of writing does not.
        """
        return self._text.parse(completion_ids, prompt=None if prompt is None else _tokens(prompt), tools=tools)

    @property
    def stop_token_ids(self) -> list[int]:
        return self._text.stop_token_ids

    def ended(self, answer: list[int]) -> list[int]:
        """The answer with a token that ends it: some templates write one only when somebody else speaks."""
        stops = self.stop_token_ids
        return answer if answer[-1] in stops else [*answer, stops[0]]

    def _describe(self, stored: Sequence[Message]) -> list[ImageDescriptor]:
        return [self.family.describe(image) for image in images_of(stored)]

    def _rendered(self, tokens: Tokens, images: list[ImageDescriptor], sampled: list[bool]) -> Rendered:
        pads = tokens.ids.count(self.family.placeholders.pad)
        if pads != len(images):
            raise RenderError(
                f"the text renderer made {pads} image pads of {len(images)} images",
                remedy="Images belong in user and tool messages; the model's template drops them elsewhere",
            )
        rendered = Rendered(tokens.ids, images, self.family, sampled, tokens.transcript, self._process)
        if self.max_tokens is not None and rendered.expanded_length > self.max_tokens:
            raise PromptTooLongError(
                f"the prompt takes {rendered.expanded_length} tokens, {self.max_tokens} are allowed: "
                f"{rendered.expanded_length - sum(image.tokens for image in images)} are text, "
                f"{sum(image.tokens for image in images)} belong to {len(images)} images",
                remedy="Leave out turns or images, show smaller images, or allow more tokens",
            )
        return rendered


def _tokens(rendered: Rendered) -> Tokens:
    return Tokens(rendered.logical, rendered.sampled, rendered.transcript)


@contextmanager
def _rendering() -> Iterator[None]:
    """What the text renderer raises about messages becomes a RenderError."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, NotImplementedError) as error:
        raise RenderError(f"these messages cannot be rendered: {error}") from error


@contextmanager
def _bridging() -> Iterator[None]:
    """Whatever the reason why a turn cannot be extended, the remedy is one."""
    try:
        yield
    except PrefixError as error:
        raise PrefixError(error.problem, remedy="Render the whole conversation anew, as a branch of its own") from None


def load_renderer(
    model_dir: str | Path,
    store: Store,
    *,
    typed: Typed = "refuse",
    max_tokens: int | None = None,
    options: Mapping[str, Any] | None = None,
    process: Process | None = None,
) -> Renderer:
    """The renderer of a checkpoint, writing images to `store`.

    The `renderers` library writes the text where it knows the family, else the checkpoint's own chat
    template. `typed` says what becomes of special tokens that a text spells out: "refuse" raises,
    "escape" keeps them as text. `max_tokens` bounds a prompt, expanded. `options` are switches of the
    chat template, such as `add_vision_id` or `enable_thinking`. `process` makes tensors of images,
    where prompts are to carry them (`rollout.modes`).
    """
    if typed not in ("refuse", "escape"):
        raise ConfigError(f"typed is {typed!r}", remedy='It is "refuse" or "escape"')
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"max_tokens is {max_tokens}", remedy="A prompt has at least 1 token; None sets no bound")
    family = load_family(model_dir)
    tokenizer = TextTokenizer.load(model_folder(model_dir))
    text = _load_text(model_dir, family, tokenizer, options or {})
    return Renderer(text, tokenizer, family, store, typed=typed, max_tokens=max_tokens, process=process)


def check_text(model_dir: str | Path, options: Mapping[str, Any]) -> None:
    """The error of `load_renderer` where it would not take these options, or this checkpoint's tokenizer."""
    _load_text(model_dir, load_family(model_dir), TextTokenizer.load(model_folder(model_dir)), options)


def _load_text(
    model_dir: str | Path, family: Family, tokenizer: TextTokenizer, options: Mapping[str, Any]
) -> TextRenderer:
    checkpoint = read_checkpoint(model_dir)
    if family.renderer is None:
        return TemplateText.load(checkpoint, family, tokenizer, options)
    return LibraryText.load(family.renderer, checkpoint, tokenizer, options)
