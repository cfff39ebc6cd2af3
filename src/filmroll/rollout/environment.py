"""What an environment is: episodes that show messages with images and score what is answered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from filmroll.render.messages import Message


@dataclass(frozen=True, slots=True)
class Score:
    """What an episode was worth. `expected` and `answer` are for people who read reports."""

    reward: float
    metrics: dict[str, float] = field(default_factory=dict)
    expected: str = ""
    answer: str = ""


class Episode(ABC):
    """One conversation with the environment, from the first message to the score.

    The seed that made it decides everything it shows, so the rollouts of a group see the same.
    """

    @abstractmethod
    async def begin(self) -> Sequence[Message]:
        """The first messages. Images are whatever a store takes: PIL, bytes, arrays, data: URIs, paths."""

    @abstractmethod
    async def reply(self, answer: str) -> Sequence[Message]:
        """The messages after the model's answer; none ends the episode."""

    @abstractmethod
    def score(self) -> Score:
        """Called once, after the episode has ended."""

    def demonstration(self) -> str:
        """What a teacher would answer now, for supervised warm-up."""
        raise NotImplementedError(f"{type(self).__name__} has no demonstrations")

    async def close(self) -> None:  # noqa: B027 - most episodes hold nothing
        """Give back what the episode holds; called however it ended."""


class Environment(ABC):
    """Makes episodes."""

    @abstractmethod
    def episode(self, seed: int) -> Episode:
        """The episode of that seed, always the same one."""
