"""How far one choice of a stream has been told."""

from __future__ import annotations

from collections.abc import Iterator

from filmroll.engine.chat.answers import Json, Paper, Spoken, beside
from filmroll.engine.chat.speech import Speech
from filmroll.errors import EngineError


class Told:
    """Its pieces, put together, are the message that the whole answer would have had."""

    def __init__(self, paper: Paper, number: int, speech: Speech) -> None:
        self.number = number
        self._paper = paper
        self._speech = speech
        self._text = ""
        self._tokens = 0

    def role(self) -> Json:
        return self._paper.piece(self.number, {"role": "assistant", "content": ""}, [], [])

    def more(self) -> Iterator[Json]:
        """The text that has become certain since."""
        certain = self._speech.certain
        if len(certain) > len(self._text):
            yield self._piece({"content": self._continued(certain)})

    def rest(self, spoken: Spoken) -> Iterator[Json]:
        """Everything that was left."""
        delta = beside(spoken.said)
        for index, call in enumerate(delta.get("tool_calls", ())):
            call["index"] = index
        text = self._continued(spoken.said.content)
        delta |= {"content": text} if text else {}
        if delta or self._tokens < len(spoken.tokens):
            yield self._piece(delta)
        yield self._paper.end(self.number, spoken.finish_reason)

    def _continued(self, text: str) -> str:
        if not text.startswith(self._text):
            raise EngineError("the answer is another one than its beginning", remedy="Ask for it without a stream")
        new = text[len(self._text) :]
        self._text = text
        return new

    def _piece(self, delta: Json) -> Json:
        begin, self._tokens = self._tokens, len(self._speech.tokens)
        tokens, logprobs = self._speech.tokens[begin:], self._speech.logprobs[begin:]
        return self._paper.piece(self.number, delta, tokens, logprobs)
