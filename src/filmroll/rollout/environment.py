"""What an environment is: episodes that show messages with images and score what is answered."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from filmroll.errors import ConfigError
from filmroll.render.answer import Answer
from filmroll.render.messages import Message


@dataclass(frozen=True, slots=True)
class Score:
    """What an episode was worth. `expected` and `answer` are for people who read reports.

    Numbers may be of any kind that makes a float, numpy's and truth values too.
    """

    reward: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    expected: str = ""
    answer: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward", as_reward(self.reward))
        measured = {str(name): as_number(f"the metric {name!r}", one) for name, one in self.metrics.items()}
        object.__setattr__(self, "metrics", measured)


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A reply that is the whole conversation from now on: history shortened, rewritten, or another agent's.

    It becomes a branch of its own, which shares what it has in common with all that was said before.
    `reward` is what the branch left behind was worth, where that is not the reward of the whole rollout.
    """

    messages: Sequence[Message]
    reward: float | None = None

    def __post_init__(self) -> None:
        if self.reward is not None:
            object.__setattr__(self, "reward", as_reward(self.reward))


@dataclass(frozen=True, slots=True)
class Retry:
    """A reply that drops the last answer and asks for another: a branch beside it.

    `reward` is what the dropped answer was worth, where that is not the reward of the whole rollout.
    """

    reward: float | None = None

    def __post_init__(self) -> None:
        if self.reward is not None:
            object.__setattr__(self, "reward", as_reward(self.reward))


def as_reward(value: Any) -> float:
    """A reward as a plain float, or ConfigError."""
    reward = as_number("the reward", value)
    if not math.isfinite(reward):
        raise ConfigError(f"the environment gave the reward {reward}", remedy="A reward must be a finite number")
    return reward


def as_number(what: str, value: Any) -> float:
    """What an environment gave for a number, numpy's and others' too, as a plain float."""
    try:
        if not isinstance(value, str | bytes):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"the environment gave {what} as a {type(value).__name__}", remedy="It must be a number")


Reply = Sequence[Message] | Rewrite | Retry
Tools = Sequence[Mapping[str, Any]]
"""Functions that a model may call, each as OpenAI's API describes one: `{"type": "function", "function": {...}}`."""


class Episode(ABC):
    """One conversation with the environment, from the first message to the score.

    The seed that made it decides everything it shows, so the rollouts of a group see the same.
    """

    conversation: Sequence[Message] = ()
    """The messages that the next answer is to, every image as its ImageRef. The worker keeps it; a Rewrite that is
    made from it puts no image again."""

    tools: Tools | None = None
    """What the model may call. It stands in the first prompt, so it is settled when `begin` returns; a Rewrite may
    come with others."""

    tries: int = 1
    """How many answers the next prompt gets. `rate` compares them, and the conversation goes on with the best."""

    @abstractmethod
    async def begin(self) -> Sequence[Message]:
        """The first messages. Images are whatever a store takes: PIL, bytes, arrays, data: URIs, paths."""

    @abstractmethod
    async def reply(self, answer: Answer) -> Reply:
        """The messages after the model's answer; none ends the episode.

        An answer is a str. Beside its text are `tool_calls`, with `arguments` as a dict; `broken_calls`,
        as they were written; and `reasoning`. What a tool gave goes back as a message with the role "tool".
        """

    async def rate(self, answers: Sequence[Answer]) -> Sequence[float]:
        """What each of several answers to one prompt is worth; asked only where `tries` is above 1.

        The first of the best goes on and has the reward of the rollout; each other one ends its
        branch, with its rating for reward.
        """
        raise NotImplementedError(f"{type(self).__name__} does not compare answers")

    @abstractmethod
    def score(self) -> Score:
        """Called once, after the episode has ended."""

    def demonstration(self) -> str | Message:
        """What a teacher would answer now, for supervised warm-up: a text, or a message with tool calls."""
        raise NotImplementedError(f"{type(self).__name__} has no demonstrations")

    async def close(self) -> None:  # noqa: B027 - most episodes hold nothing
        """Give back what the episode holds; called however it ended."""


class Environment(ABC):
    """Makes episodes."""

    @abstractmethod
    def episode(self, seed: int) -> Episode:
        """The episode of that seed, always the same one."""
