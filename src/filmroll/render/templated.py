"""Text by a checkpoint's own chat template, for families that the `renderers` library does not know.

A template writes a conversation from its beginning, and many of them rewrite what was said: they drop
reasoning, strip white space, repeat a system prompt. So a turn is written twice, without and with what
follows. Where the longer text begins with the shorter one and what was sampled after it, the new
tokens are those of the rest, and everything before stays as it is; otherwise it is a PrefixError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from filmroll.errors import CheckpointError, PrefixError, RenderError
from filmroll.families import Family
from filmroll.families.checkpoint import Checkpoint, read_section
from filmroll.render.answer import Answer, ToolCall
from filmroll.render.calls import NAMES, CallForm, Calls, Probe
from filmroll.render.forms import INNARDS, PROBE, Forms
from filmroll.render.json_calls import NamedCalls, ObjectCalls
from filmroll.render.markup import without_marks
from filmroll.render.messages import Message
from filmroll.render.spelled_calls import SpelledCalls
from filmroll.render.template import ChatTemplate, Span, Written
from filmroll.render.text import Tokens, Transcript, refuse_unknown
from filmroll.render.tokenizer import TextTokenizer

BEGINS_REASONING, ENDS_REASONING = "<think>", "</think>"


class TemplateText:
    """A chat template as a text renderer."""

    def __init__(self, template: ChatTemplate, tokenizer: TextTokenizer, ends: Sequence[int]) -> None:
        """`ends` are tokens that end an answer, beside the one that the template writes after it."""
        self._template = template
        self._tokenizer = tokenizer
        self._forms = Forms(template)
        self._stops = list(dict.fromkeys([*self._closing(), *ends]))
        if not self._stops:
            raise CheckpointError(
                "neither the chat template nor the checkpoint's files tell which token ends an answer",
                remedy="Put eos_token_id into generation_config.json",
            )
        self._opening = tokenizer.opening
        self._calls = _call_form(Probe(template, self._forms))

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, family: Family, tokenizer: TextTokenizer, options: Mapping[str, Any]
    ) -> TemplateText:
        if not checkpoint.chat_template:
            raise CheckpointError(
                f"no text renderer is known for family {family.name!r}, and the checkpoint has no chat template",
                remedy="Add its chat_template.jinja, or use a checkpoint that was tuned for chats",
            )
        template = ChatTemplate.of(checkpoint, options, finish=family.prompt_text)
        refuse_unknown(options, template.switches)
        eos = tokenizer.convert_tokens_to_ids(template.variables.get("eos_token", ""))
        return cls(template, tokenizer, [*_ends(checkpoint), *([] if eos is None else [eos])])

    @property
    def stop_token_ids(self) -> list[int]:
        return list(self._stops)

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Any] | None, add_generation_prompt: bool
    ) -> Tokens:
        dressed = [self._forms.dressed(message) for message in messages]
        written = self._template.write(dressed, tools=tools, add_generation_prompt=add_generation_prompt)
        opening = [] if self._opened(written.text) else self._opening
        transcript = Transcript(tuple(dressed), written.text)
        if not any(message["role"] == "assistant" for message in dressed):
            ids = [*opening, *self._tokenizer.encode(written.text)]
            return Tokens(ids, [False] * len(ids), transcript)
        ids, offsets = self._tokenizer.encode_with_offsets(written.text)
        sampled = [False] * len(ids)
        for begin, end in self._answers(dressed, tools, written):
            self._mark(sampled, ids, [index for index, (start, _) in enumerate(offsets) if begin <= start < end])
        return Tokens([*opening, *ids], [False] * len(opening) + sampled, transcript)

    def extend(
        self,
        previous: Tokens,
        completion_ids: Sequence[int],
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None,
    ) -> Tokens:
        before = previous.transcript
        if before is None or not messages or any(message.get("role") == "assistant" for message in messages):
            raise PrefixError("a turn goes on from a rendered one, with messages that are not the model's own")
        completion = list(completion_ids)
        ended = completion[-1:] if completion[-1:] and completion[-1] in self._stops else []
        body = completion[: len(completion) - len(ended)]
        if not set(body).isdisjoint(self._stops):
            raise PrefixError("the completion goes on after a token that ends an answer")
        said = without_marks(self._tokenizer.decode(body))
        longer, text = self._written_on(before, said, messages, tools)
        rest = self._tokenizer.encode(text[len(before.text) + len(said) :])
        if not rest or rest[0] not in self._stops or (ended and rest[:1] != ended):
            raise PrefixError("the chat template does not end an answer with the token that ended this one")
        ids = [*previous.ids, *completion, *rest[len(ended) :]]
        return Tokens(ids, [], Transcript(longer, text))

    def _written_on(
        self, before: Transcript, said: str, messages: Sequence[Message], tools: Sequence[Any] | None
    ) -> tuple[tuple[Mapping[str, Any], ...], str]:
        """The longer conversation and its text, which begins with the shorter one's and what was said."""
        after = [self._forms.dressed(message) for message in messages]
        # Some templates write the space themselves that a model says first.
        for content in dict.fromkeys((said, said.lstrip())):
            answer = self._forms.dressed({"role": "assistant", "content": content})
            longer = (*before.messages, answer, *after)
            text = self._template.write(longer, tools=tools, add_generation_prompt=True).text
            if text.startswith(before.text + said):
                return longer, text
        raise PrefixError("the chat template writes what was said before otherwise once more follows")

    def parse(self, completion_ids: Sequence[int], *, prompt: Tokens | None, tools: Sequence[Any] | None) -> Answer:
        ids = list(completion_ids)
        end = next((index for index, token in enumerate(ids) if token in self._stops), len(ids))
        whole = self._tokenizer.decode(ids[:end])
        reasoning, said = self._reasoning(whole, prompt)
        read = Calls(said) if self._calls is None else self._calls.read(said, tools)
        inline = None
        if reasoning is not None and "reasoning_content" not in self._template.source:
            inline = whole[: len(whole) - len(said)] + read.text
        return Answer(read.text, reasoning=reasoning, tool_calls=read.calls, broken_calls=read.broken, inline=inline)

    def _reasoning(self, text: str, prompt: Tokens | None) -> tuple[str | None, str]:
        """What was thought and what was said, where the template knows of such a thing."""
        if ENDS_REASONING not in self._template.source:
            return None, text
        thought, ends, said = text.rpartition(ENDS_REASONING)
        begun = prompt is not None and prompt.transcript is not None and _is_open(prompt.transcript.text)
        if not ends and (begun or text.lstrip().startswith(BEGINS_REASONING)):
            thought, said = text, ""
        elif not ends:
            return None, text
        return thought.strip().removeprefix(BEGINS_REASONING).strip() or None, said

    def _opened(self, text: str) -> bool:
        """Whether the template itself begins with what the tokenizer would put first."""
        return self._tokenizer.encode(text[:64])[: len(self._opening)] == self._opening

    def _answers(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, written: Written
    ) -> Sequence[Span]:
        """Where the assistant's words stand; the template's own word where writing it turn by turn does not tell."""
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            try:
                before = self._template.write(messages[:index], tools=tools, add_generation_prompt=True).text
                after = self._template.write(messages[: index + 1], tools=tools).text
            except RenderError:
                return written.generated
            if not (after.startswith(before) and written.text.startswith(after)):
                return written.generated
            spans.append((len(before), len(after)))
        return spans

    def _mark(self, sampled: list[bool], ids: Sequence[int], answer: Sequence[int]) -> None:
        """Mark an answer's tokens up to the one that ends it, which may be the first of what follows."""
        stops = [index for index in answer if ids[index] in self._stops]
        last = stops[-1] if stops else answer[-1] if answer else -1
        for index in answer:
            sampled[index] = index <= last
        if answer and not stops and last + 1 < len(ids) and ids[last + 1] in self._stops:
            sampled[last + 1] = True

    def _closing(self) -> list[int]:
        """The token that the template writes after an answer, if it is a special one."""
        chat = ({"role": "user", "content": "x"}, {"role": "assistant", "content": PROBE})
        try:
            text = self._template.write([self._forms.dressed(message) for message in chat]).text
        except RenderError:
            return []
        first = self._tokenizer.encode(text.partition(PROBE)[2])[:1]
        return [token for token in first if token in self._tokenizer.special.values()]


def _call_form(probe: Probe) -> CallForm | None:
    """How the template writes calls; None where that is not a way which can be read, or it writes none."""
    calls = [ToolCall(name, {INNARDS: PROBE}) for name in NAMES]
    try:
        written = probe.written(*calls) or ""
        forms = [kind.of(probe) for kind in (ObjectCalls, NamedCalls, SpelledCalls)]
    except RenderError:
        return None
    heard = [form for form in forms if form is not None and _without_ids(form.read(written).calls) == calls]
    return heard[0] if heard else None


def _without_ids(calls: Sequence[ToolCall]) -> list[ToolCall]:
    return [replace(call, id=None) for call in calls]


def _is_open(prompt: str) -> bool:
    """Whether a prompt ends where the model is to begin, or to go on, with its reasoning."""
    return prompt.rstrip().endswith(BEGINS_REASONING)


def _ends(checkpoint: Checkpoint) -> list[int]:
    """The tokens that end an answer by the checkpoint's files."""
    generation = read_section(checkpoint.folder, "generation_config.json")
    sections = [generation.values if generation else {}, checkpoint.config.values]
    sections.append(checkpoint.config.values.get("text_config") or {})
    found: list[int] = []
    for values in sections:
        ends = values.get("eos_token_id") if isinstance(values, dict) else None
        found += [end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int]
    return found
