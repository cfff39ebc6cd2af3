"""Answers as OpenAI's API writes them: whole, and in pieces."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import msgspec

from filmroll.engine.chat.speech import UNFINISHED, Said
from filmroll.render import ToolCall
from filmroll.render.tokenizer import TextTokenizer

Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Spoken:
    """One choice, finished."""

    said: Said
    tokens: list[int]
    logprobs: list[float]
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Paper:
    """What all parts of one answer have in common."""

    model: str
    tokenizer: TextTokenizer
    prompt_ids: list[int]
    with_logprobs: bool
    with_ids: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, spoken: Sequence[Spoken]) -> Json:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": one.said.content or None, **beside(one.said)},
                "logprobs": self.logprobs(one.tokens, one.logprobs),
                "finish_reason": one.finish_reason,
                **({"token_ids": one.tokens} if self.with_ids else {}),
            }
            for index, one in enumerate(spoken)
        ]
        ids = {"prompt_token_ids": self.prompt_ids} if self.with_ids else {}
        tokens = sum(len(one.tokens) for one in spoken)
        return self._headed("chat.completion", choices) | {"usage": self.usage(tokens)} | ids

    def piece(self, index: int, delta: Json, tokens: Sequence[int], logprobs: Sequence[float]) -> Json:
        choice: Json = {"index": index, "delta": delta, "finish_reason": None}
        choice["logprobs"] = self.logprobs(tokens, logprobs) if tokens else None
        if self.with_ids:
            choice["token_ids"] = list(tokens)
        return self._headed("chat.completion.chunk", [choice])

    def end(self, index: int, finish_reason: str) -> Json:
        choice = {"index": index, "delta": {}, "finish_reason": finish_reason, "logprobs": None}
        return self._headed("chat.completion.chunk", [choice])

    def sum(self, tokens: int) -> Json:
        """The last piece of a stream that tells its usage."""
        return self._headed("chat.completion.chunk", []) | {"usage": self.usage(tokens)}

    def usage(self, tokens: int) -> Json:
        prompt = len(self.prompt_ids)
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}

    def logprobs(self, tokens: Sequence[int], logprobs: Sequence[float]) -> Json | None:
        if not self.with_logprobs:
            return None
        return {"content": list(map(self._entry, tokens, logprobs)), "refusal": None}

    def _entry(self, token: int, logprob: float) -> Json:
        text = self.tokenizer.decode(token)
        # A token may end in the middle of a character; what its bytes are the tokenizer does not say then.
        spelled = None if UNFINISHED in text else list(text.encode())
        return {"token": text, "bytes": spelled, "logprob": logprob, "top_logprobs": []}

    def _headed(self, kind: str, choices: list[Json]) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def event(content: Json) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


def beside(said: Said) -> Json:
    """What a message holds beside its text."""
    reasoning = {} if said.reasoning is None else {"reasoning_content": said.reasoning}
    return reasoning | ({"tool_calls": [_call(call) for call in said.calls]} if said.calls else {})


def _call(call: ToolCall) -> Json:
    return {
        "id": call.id or f"call_{uuid4().hex}",
        "type": "function",
        "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
    }
