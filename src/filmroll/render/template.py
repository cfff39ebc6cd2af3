"""A checkpoint's own chat template: messages to text as transformers writes it, in a sandbox.

The environment is the one that templates are written for: blocks trimmed, loop controls, `tojson` that
leaves letters alone, `raise_exception`, `strftime_now`, and `{% generation %}` around what a model says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from filmroll.errors import CheckpointError, RenderError
from filmroll.families.checkpoint import Checkpoint, read_section
from filmroll.render.markup import CLOSES, OPENS

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that templates know by name."""
GIVEN = ("messages", "tools", "documents", "add_generation_prompt")
"""What every template is given."""
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Written:
    """A conversation as text, and what of it the template calls generated."""

    text: str
    generated: tuple[Span, ...]


class ChatTemplate:
    """Writes conversations; safe to use from several threads."""

    def __init__(self, source: str, variables: Mapping[str, Any], finish: Callable[[str], str] = str) -> None:
        """`variables` are what the template may use beside the messages: special tokens by name, its own switches.

        `finish` is what the model's processor does to a text before it is encoded.
        """
        self.source = source
        self._finish = finish
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        self.variables = dict(variables)
        try:
            self._template = environment.from_string(source)
            asks = find_undeclared_variables(environment.parse(source))
        except TemplateError as error:
            raise CheckpointError(
                "the chat template cannot be read", remedy="Fetch the checkpoint's files again", private=str(error)
            ) from error
        self.switches = sorted(asks - {*GIVEN, *NAMED, *environment.globals})
        """The names of what the template asks for beyond that: what `variables` may turn on and off."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, options: Mapping[str, Any], finish: Callable[[str], str] = str) -> ChatTemplate:
        """The checkpoint's template with its special tokens and some switches of its own."""
        return cls(checkpoint.chat_template, {**_named_tokens(checkpoint), **options}, finish)

    def write(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
    ) -> Written:
        """RenderError where the template refuses the messages or stumbles over them."""
        try:
            text = self._template.render(
                **self.variables,
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # templates are programs: they divide, index and call
            raise RenderError(
                f"the checkpoint's chat template does not take these messages: {error}",
                remedy="Write them as the model's authors do; the template is in the checkpoint's files",
            ) from error
        return _spans(self._finish(text))


def _spans(marked: str) -> Written:
    """The text without the marks of the generation blocks, and where those were."""
    first, *rest = marked.split(OPENS)
    text, generated = first, []
    for block in rest:
        inside, _, after = block.partition(CLOSES)
        generated.append((len(text), len(text) + len(inside)))
        text += inside + after
    return Written(text, tuple(generated))


class _Generation(Extension):
    """`{% generation %}`: its body between two marks, which no message contains."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    @staticmethod
    def _marked(caller: Callable[[], str]) -> str:
        return f"{OPENS}{caller()}{CLOSES}"


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    """The day where the template runs, as templates mean it."""
    return datetime.now().strftime(form)


def _named_tokens(checkpoint: Checkpoint) -> dict[str, str]:
    named: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        section = read_section(checkpoint.folder, file)
        for name in NAMED:
            token = section.values.get(name) if section else None
            text = token.get("content") if isinstance(token, dict) else token
            if isinstance(text, str):
                named[name] = text
    return named
