"""What one answer says, while it is sampled: text as far as it is certain, and whether a stop text was said."""

from __future__ import annotations

from dataclasses import dataclass

from filmroll.engine.chat.request import ChatRequest
from filmroll.render import Answer, Rendered, Renderer, ToolCall
from filmroll.render.tokenizer import TextTokenizer

UNFINISHED = "\ufffd"
"""What a tokenizer writes in place of bytes that are no character, or not yet one."""
_OPENING_TOKENS = 16
"""At a prompt's end, among which a template opens the model's reasoning."""


@dataclass(frozen=True, slots=True)
class Said:
    """A whole answer, cut off where a stop text begins."""

    content: str
    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()


class Running:
    """Tokens to text as they come: only what later tokens cannot change."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._sure = 0
        self._before = 0
        self.text = ""

    def add(self, token: int) -> str:
        """The text that is certain now and was not before."""
        self._ids.append(token)
        # From a little earlier on: some tokenizers write a token otherwise at a text's beginning.
        known = self._tokenizer.decode(self._ids[self._before : self._sure])
        longer = self._tokenizer.decode(self._ids[self._before :])
        if longer.endswith(UNFINISHED) or not longer.startswith(known):
            return ""
        self._before, self._sure = self._sure, len(self._ids)
        new = longer[len(known) :]
        self.text += new
        return new


class Speech:
    """One answer. `certain` grows with it, and is always how the whole answer's content will begin.

    Content is certain at once where it is plain text. Reasoning and calls of tools are marked by tokens
    of their own: from the first of them on nothing is certain before the end.
    """

    def __init__(self, renderer: Renderer, prompt: Rendered, asked: ChatRequest) -> None:
        self._renderer = renderer
        self._prompt = prompt
        self._tools = asked.functions
        self._stops = asked.stops
        self._held_back = max(map(len, self._stops), default=1) - 1
        self._unsaid = frozenset(asked.stop_token_ids or ())
        self._marks = renderer.tokenizer.added
        self._ends = self._unsaid.union(renderer.stop_token_ids)
        self._running = Running(renderer.tokenizer)
        self._open = self._is_marked and not self._reasons(renderer.tokenizer.decode(prompt.logical[-_OPENING_TOKENS:]))
        self._strips: bool | None = None
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.stopped = False

    def hear(self, token: int, logprob: float) -> None:
        if self.stopped:
            return
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in self._ends:
            return
        if token in self._marks:
            self._open = False
        new = self._running.add(token)
        late = self._running.text[-len(new) - self._held_back :] if new else ""
        self.stopped = any(stop in late for stop in self._stops)

    @property
    def certain(self) -> str:
        text = self._running.text
        if not self._open or self.stopped or not text.strip():
            return ""
        if self._strips is None:
            self._strips = not self._read()[:1].isspace()
        text = text.lstrip() if self._strips else text
        return text[: len(text) - self._held_back].rstrip()

    def whole(self) -> Said:
        """All that was said, up to the first stop text. Calls that cannot be read are text."""
        answer = self._read()
        content = "\n".join(filter(None, [str(answer), *answer.broken_calls]))
        ends = [place for place in map(content.find, self._stops) if place >= 0]
        if ends:
            return Said(content[: min(ends)], answer.reasoning)
        return Said(content, answer.reasoning, answer.tool_calls)

    def _read(self) -> Answer:
        ids = self.tokens[:-1] if self.tokens[-1:] and self.tokens[-1] in self._unsaid else self.tokens
        return self._renderer.parse(ids, prompt=self._prompt, tools=self._tools)

    @property
    def _is_marked(self) -> bool:
        """Whether calls would be marked by tokens; a template may have marks that are text like any other."""
        return self._tools is None or self._renderer.family.renderer is not None

    @staticmethod
    def _reasons(opening: str) -> bool:
        return opening.rfind("<think>") > opening.rfind("</think>")
