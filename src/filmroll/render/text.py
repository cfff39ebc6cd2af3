"""What writes a conversation's text in tokens: the interface, and the `renderers` library behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from filmroll.errors import CheckpointError, ConfigError, FilmrollError, PrefixError, RenderError
from filmroll.families.checkpoint import Checkpoint
from filmroll.render.answer import Answer, ToolCall
from filmroll.render.messages import Message
from filmroll.render.template import ChatTemplate
from filmroll.render.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class Transcript:
    """A conversation as a chat template wrote it: its messages as the template took them, and the text they made."""

    messages: tuple[Mapping[str, Any], ...]
    text: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """A conversation in logical tokens, one pad for each image."""

    ids: list[int]
    sampled: list[bool]
    """Which of them a model would have sampled; empty where nobody asks."""
    transcript: Transcript | None = None
    """What a chat template needs to go on from here; the library needs nothing but the tokens."""


class TextRenderer(Protocol):
    """Safe to use from several threads."""

    @property
    def stop_token_ids(self) -> list[int]: ...

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Any] | None, add_generation_prompt: bool
    ) -> Tokens: ...

    def extend(
        self,
        previous: Tokens,
        completion_ids: Sequence[int],
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None,
    ) -> Tokens:
        """`previous`, the completion, and what follows, with a generation prompt; PrefixError where that cannot be."""

    def parse(self, completion_ids: Sequence[int], *, prompt: Tokens | None, tools: Sequence[Any] | None) -> Answer:
        """What a completion says, without its stop token; it may go on with reasoning that the prompt began."""


class LibraryText:
    """A renderer of the `renderers` library, asked for one pad an image and for no image work."""

    def __init__(self, renderer: Any, tokenizer: TextTokenizer) -> None:
        self._renderer = renderer
        self._tokenizer = tokenizer
        self._given = self._begun_for_it()

    @classmethod
    def load(
        cls, name: str, checkpoint: Checkpoint, tokenizer: TextTokenizer, options: Mapping[str, Any]
    ) -> LibraryText:
        from pydantic import ValidationError
        from renderers import config_from_name, create_renderer

        try:
            config = type(config_from_name(name))
            refuse_unknown(options, sorted(set(config.model_fields) - {"name"}))
            thinks = {} if "enable_thinking" not in config.model_fields else _thinks(checkpoint, options)
            return cls(create_renderer(tokenizer, config(**{**thinks, **options})), tokenizer)
        except FilmrollError:
            raise
        except ValidationError as error:
            raise ConfigError(
                f"the {name!r} renderer does not take the options {dict(options)}",
                remedy="; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()),
            ) from error
        except Exception as error:  # the library raises AssertionError, ValueError and others
            raise CheckpointError(
                f"the tokenizer does not serve the {name!r} renderer",
                remedy="Its special tokens must be in it",
                private=str(error),
            ) from error

    @property
    def stop_token_ids(self) -> list[int]:
        ids: list[int] = self._renderer.get_stop_token_ids()
        return ids

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Any] | None, add_generation_prompt: bool
    ) -> Tokens:
        made = self._renderer.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, process_multimodal=False
        )
        ids, sampled = list(made.token_ids), list(made.sampled_mask)
        for start in [place for place, one in enumerate(sampled) if one and not (place and sampled[place - 1])]:
            for place, given in enumerate(self._given, start):
                if ids[place : place + 1] != [given]:
                    break
                sampled[place] = False
        return Tokens(ids, sampled)

    def extend(
        self,
        previous: Tokens,
        completion_ids: Sequence[int],
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None,
    ) -> Tokens:
        bridged = self._renderer.bridge_to_next_turn(
            previous.ids, list(completion_ids), messages, tools=tools, process_multimodal=False
        )
        if bridged is None:
            raise PrefixError("the model's way of writing conversations does not extend this one by these messages")
        return Tokens(bridged.token_ids, [])

    def parse(self, completion_ids: Sequence[int], *, prompt: Tokens | None, tools: Sequence[Any] | None) -> Answer:
        ids = list(completion_ids)
        said = self._renderer.parse_response(
            ids, tools=None if tools is None else list(tools), prompt_ids=None if prompt is None else prompt.ids
        )
        calls = [ToolCall(one.name, one.arguments, one.id) for one in said.tool_calls if _is_whole(one)]
        broken = [self._written(ids, one) for one in said.tool_calls if not _is_whole(one)]
        return Answer(said.content, reasoning=said.reasoning_content, tool_calls=calls, broken_calls=broken)

    def _begun_for_it(self) -> list[int]:
        """What prompts write of an answer: where reasoning begins, or that there is none.

        The library counts it among what was sampled.
        """
        asked: list[Message] = [{"role": "user", "content": "x"}]
        answered = self._renderer.render([*asked, {"role": "assistant", "content": "x"}])
        prompt = self._renderer.render(asked, add_generation_prompt=True)
        ids: list[int] = prompt.token_ids[list(answered.sampled_mask).index(True) :]
        return ids

    def _written(self, ids: list[int], call: Any) -> str:
        """A call as the model wrote it, marks and all where the library says where they are."""
        text: str = call.raw if call.token_span is None else self._tokenizer.decode(ids[slice(*call.token_span)])
        return text


def _is_whole(call: Any) -> bool:
    """Whether it is a call of something; that nobody has such a tool is no fault of its form."""
    return call.status in ("ok", "unknown_tool") and bool(call.name) and isinstance(call.arguments, dict)


def refuse_unknown(options: Mapping[str, Any], known: Sequence[str]) -> None:
    """ConfigError that names the first option which nothing reads: it would change nothing, in silence."""
    for name in options:
        if name not in known:
            raise ConfigError(
                f"the model's way of writing conversations has no option {name!r}",
                remedy=f"It has {', '.join(known)}" if known else "It has none",
            )


def _thinks(checkpoint: Checkpoint, options: Mapping[str, Any]) -> dict[str, bool]:
    """Whether the checkpoint's own template lets a model think unless it is told otherwise.

    The library would know by the model's name on the hub, which a folder does not have.
    """
    try:
        text = ChatTemplate.of(checkpoint, options).write(
            [{"role": "user", "content": "x"}], add_generation_prompt=True
        )
    except RenderError:
        return {}
    return {"enable_thinking": not text.text.rstrip().endswith("</think>")} if "<think>" in text.text else {}
