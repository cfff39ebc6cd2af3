"""color-codeword: name the letter of each colour, and at the end the whole codeword.

Every turn shows one or two solid pictures. The reward is 1 if the longest run of letters A to I in
the last answer is the letters of all pictures in order; a model that cannot see them cannot guess it.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, Self

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from filmroll.render.messages import Message
from filmroll.rollout.environment import Environment, Episode, Score

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 220, 50),
    "purple": (140, 50, 170),
    "cyan": (60, 210, 220),
    "orange": (250, 140, 30),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
LETTERS = dict(zip(COLORS, "ABCDEFGHI", strict=True))
LEGEND = ", ".join(f"{color} {letter}" for color, letter in LETTERS.items())
FIRST = f"Each picture is one letter: {LEGEND}. Which letters are these?"
NEXT = "Which letters are these?"
LAST = "Which letters are these? End with the whole codeword."
SHADE = 12
"""How far a shade may be from its colour, per channel."""


class ColorCodewordConfig(BaseModel):
    """The `[environment]` section of color-codeword."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: Literal["color_codeword"] = "color_codeword"
    """Which environment this is."""
    turns: int = Field(default=3, ge=1, le=16)
    """Turns in an episode."""
    images_per_turn: tuple[int, int] = (1, 2)
    """Fewest and most pictures in a turn."""
    size: int = Field(default=100, ge=1, le=8192)
    """Width and height of a picture in pixels."""
    shades: int = Field(default=16, ge=1, le=4096)
    """How many shades each colour comes in."""
    images: Literal["colors", "blank"] = "colors"
    """`blank` shows grey pictures instead: the control, which must stay at chance."""
    teacher_accuracy: float = Field(default=0.6, ge=0, le=1)
    """How often a demonstration names the right letter."""

    @property
    def chance(self) -> float:
        """The mean reward of guessing as many letters as there are pictures."""
        fewest, most = self.images_per_turn
        turn = sum(len(LETTERS) ** -count for count in range(fewest, most + 1)) / (most - fewest + 1)
        return float(turn**self.turns)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        fewest, most = self.images_per_turn
        if not 1 <= fewest <= most <= 16:
            raise ValueError(f"images_per_turn is {fewest} to {most}; it must be 1 to 16, the fewest first")
        return self


class ColorCodeword(Environment):
    def __init__(self, config: ColorCodewordConfig) -> None:
        self.config = config

    def episode(self, seed: int) -> ColorCodewordEpisode:
        return ColorCodewordEpisode(self.config, seed)


class ColorCodewordEpisode(Episode):
    def __init__(self, config: ColorCodewordConfig, seed: int) -> None:
        self._config = config
        draw = random.Random(seed)
        fewest, most = config.images_per_turn
        self._turns = [
            [(draw.choice(list(COLORS)), draw.randrange(config.shades)) for _ in range(draw.randint(fewest, most))]
            for _ in range(config.turns)
        ]
        self._teacher = random.Random(draw.getrandbits(64))
        self._taught = ""
        self._turn = 0
        self._last_answer = ""

    @property
    def codeword(self) -> str:
        return "".join(LETTERS[color] for turn in self._turns for color, _ in turn)

    async def begin(self) -> Sequence[Message]:
        return [self._message()]

    async def reply(self, answer: str) -> Sequence[Message]:
        self._turn += 1
        if self._turn < self._config.turns:
            return [self._message()]
        self._last_answer = answer
        return []

    def score(self) -> Score:
        said = longest_run(self._last_answer)
        expected = self.codeword
        right = sum(one == two for one, two in zip(said, expected, strict=False))
        partial = right / max(len(said), len(expected))
        return Score(float(said == expected), {"partial": partial}, expected, self._last_answer)

    def demonstration(self) -> str:
        """Each letter right with the teacher's accuracy; the codeword repeats what was said before."""
        self._taught += "".join(self._teach(LETTERS[color]) for color, _ in self._turns[self._turn])
        if self._turn == self._config.turns - 1:
            return self._taught
        return self._taught[-len(self._turns[self._turn]) :]

    def _teach(self, letter: str) -> str:
        if self._teacher.random() < self._config.teacher_accuracy:
            return letter
        return self._teacher.choice(list(LETTERS.values()))

    def _message(self) -> Message:
        config = self._config
        pictures = [picture(color, shade, config.size, config.images) for color, shade in self._turns[self._turn]]
        last = self._turn == config.turns - 1
        text = LAST if last else FIRST if self._turn == 0 else NEXT
        return {
            "role": "user",
            "content": [*({"type": "image", "image": data} for data in pictures), {"type": "text", "text": text}],
        }


def longest_run(text: str) -> str:
    """The longest run of letters A to I, the last of equals."""
    runs = re.findall(r"[A-I]+", text)
    return max(reversed(runs), key=len, default="")


@lru_cache(maxsize=4096)
def picture(color: str, shade: int, size: int, images: str) -> bytes:
    """A PNG of one shade of a colour, or the grey of the control."""
    if images == "blank":
        rgb: tuple[int, ...] = (128, 128, 128)
    else:
        draw = random.Random(f"{color}/{shade}")
        rgb = tuple(min(255, max(0, channel + draw.randint(-SHADE, SHADE))) for channel in COLORS[color])
    out = io.BytesIO()
    Image.new("RGB", (size, size), rgb).save(out, "PNG")
    return out.getvalue()
