"""What came back from a server under attack, and whether that is right."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Protocol

FORM = {"message", "type", "code", "param", "index"}
"""What an error says."""


@dataclass(frozen=True)
class Answer:
    """Status 0: there was none."""

    status: int
    text: str

    @property
    def error(self) -> dict[str, Any]:
        try:
            error = json.loads(self.text)["error"]
        except (ValueError, KeyError, TypeError):
            return {}
        return error if isinstance(error, dict) else {}

    @property
    def sampled(self) -> tuple[list[int], list[float]]:
        """Tokens and their logprobs."""
        (choice,) = json.loads(self.text)["choices"]
        return choice["token_ids"], [one["logprob"] for one in choice["logprobs"]["content"]]


class Verdict(Protocol):
    """What a right answer is."""

    def wrong(self, answer: Answer) -> str:
        """What is wrong with this one; empty for nothing."""


@dataclass(frozen=True)
class Refused:
    """Right is a 4xx with one of these codes of filmroll's, naming field and image; `...` is whichever field."""

    code: str | tuple[str, ...]
    field: str | EllipsisType | None = None
    index: int | None = None
    status: int | None = None
    """Whichever 4xx, or this one alone."""

    def wrong(self, answer: Answer) -> str:
        if not 400 <= answer.status < 500:
            return "it is not refused"
        error = answer.error
        if set(error) != FORM or error["code"] != answer.status or not error["message"]:
            return "its refusal is not structured"
        if self.status not in (None, answer.status):
            return f"it is refused with {answer.status}"
        codes = (self.code,) if isinstance(self.code, str) else self.code
        said = (error.get("type"), error.get("param"), error.get("index"))
        right = said[0] in codes and self.field in (..., said[1]) and said[2] == self.index
        return "" if right else f"it is refused for {said}, not for {self}"


@dataclass(frozen=True)
class Worded:
    """Right is a 4xx of vLLM's own, which looks at this first: its words name what is wrong."""

    word: str = ""

    def wrong(self, answer: Answer) -> str:
        if not 400 <= answer.status < 500:
            return "it is not refused"
        return "" if self.word in json.dumps(answer.error) else f"its refusal does not speak of {self.word}"


@dataclass(frozen=True)
class Harmless:
    """Right is an answer or a refusal: it is no wrong to ask."""

    def wrong(self, answer: Answer) -> str:
        return "" if answer.status == 200 or 400 <= answer.status < 500 else "the server fails"


@dataclass(frozen=True)
class Outcome:
    """One request of an attack; `wrong` is empty if the server held."""

    name: str
    sent: str
    answer: Answer
    wrong: str
