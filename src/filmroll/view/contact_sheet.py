"""A few of a run's rollouts as strips of film: text, images where their tokens stand, sampled tokens."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from filmroll.view import words
from filmroll.view.darkroom import Darkroom, Tile
from filmroll.view.records import Row, read_lines
from filmroll.view.series import number

IMAGE = "\ufffc"
"""Stands in a turn's text where an image's placeholders are."""
FILES = 24
"""Files of rollouts that are read, spread over the run."""
DEMONSTRATION = "demonstration"
"""Why an answer ended that nobody has sampled."""
TURNS = 24
TEXT = 2400
"""Characters shown of one turn; its middle is left out."""
TOKENS = 400
"""Sampled tokens shown of one turn."""
_FROM_STEPS = 4
_FROM_EXTREMES = 6
_MARK = re.compile(r"(<\|[^|<>]{1,48}\|>)")


@dataclass(frozen=True, slots=True)
class Token:
    """A sampled token; `p` is its probability, NaN where the record lacks it."""

    text: str
    p: float
    logprob: float
    version: str

    @property
    def title(self) -> str:
        text = json.dumps(self.text, ensure_ascii=False)
        return (
            f"{text}, probability {words.decimal(self.p)}, log-probability {words.decimal(self.logprob, 4)}, "
            f"version {self.version}"
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a turn: `text`, a `mark` of the chat format, a `gap` left out, an `image` or a `token`."""

    kind: str
    text: str = ""
    tile: Tile | None = None
    token: Token | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    answer: bool
    pieces: list[Piece]
    version: str


@dataclass(frozen=True, slots=True)
class Strip:
    """One rollout. `grade` is best, worst or between, among the rewards on this sheet."""

    name: str
    step: str
    reward: float
    grade: str
    metrics: list[tuple[str, float]]
    expected: str
    answer: str
    scored: bool
    """Whether anything of it was sampled, and rewarded; conversations that were given are not."""
    turns: list[Turn]
    turns_left_out: int
    images: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Group:
    title: str
    strips: list[Strip]


def contact_sheet(run: Path, darkroom: Darkroom, notes: list[str], *, unit: str = "step") -> list[Group]:
    """Groups of strips: the first, middle and last recorded step, then the best and the worst."""
    chosen = _chosen(_read(run, notes), unit)
    rewards = [number(row, "reward") for _, rows in chosen for row in rows]
    finite = [reward for reward in rewards if math.isfinite(reward)]
    low, high = (min(finite), max(finite)) if finite else (math.nan, math.nan)
    return [Group(title, [_strip(row, low, high, darkroom) for row in rows]) for title, rows in chosen if rows]


def _read(run: Path, notes: list[str]) -> list[tuple[str, list[Row]]]:
    """Step and rollouts of some files, in order; a rollout that was played again counts once."""
    files = sorted((run / "rollouts").glob("step_*.jsonl"))
    if len(files) > FILES:
        notes.append(f"rollouts: {FILES} of {len(files)} files were read, spread over the run.")
    steps = []
    for path in _spread(files, FILES):
        rows = {str(row.get("name", place)): row for place, row in enumerate(read_lines(path, notes))}
        steps.append((path.stem.removeprefix("step_").lstrip("0") or "0", list(rows.values())))
    return [(step, rows) for step, rows in steps if rows]


def _chosen(steps: list[tuple[str, list[Row]]], unit: str) -> list[tuple[str, list[Row]]]:
    if not steps:
        return []
    places = sorted({0, len(steps) // 2, len(steps) - 1})
    titles = {0: "First", len(steps) // 2: "Middle", len(steps) - 1: "Last"} if len(steps) > 1 else {0: "Only"}
    groups = [
        (f"{titles[place]} recorded {unit}, {steps[place][0]}", _spread(steps[place][1], _FROM_STEPS))
        for place in places
    ]
    shown = {id(row) for _, rows in groups for row in rows}
    if not any(_is_scored(row) for _, rows in steps for row in rows):
        return groups
    # Newest first, and sorting is stable: of equals the newest is taken.
    later = [row for _, rows in reversed(steps[len(steps) // 2 :]) for row in reversed(rows)]
    for title, sign in (("Best of the later half", 1), ("Worst of the later half", -1)):
        ranked = sorted(later, key=lambda row: _merit(row, sign), reverse=True)
        extremes = [row for row in ranked if id(row) not in shown][:_FROM_EXTREMES]
        shown.update(id(row) for row in extremes)
        groups.append((title, extremes))
    return groups


def _is_scored(row: Row) -> bool:
    turns = [turn for turn in _list(row.get("turns")) if isinstance(turn, dict) and turn.get("role") == "answer"]
    return not turns or any(turn.get("finish_reason") != DEMONSTRATION for turn in turns)


def _merit(row: Row, sign: int) -> tuple[float, float]:
    values = (sign * number(row, "reward"), sign * number(row, "metrics", "partial"))
    return (values[0] if math.isfinite(values[0]) else -math.inf, values[1] if math.isfinite(values[1]) else 0.0)


def _spread(items: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit` of them, evenly spaced, the first and the last among them."""
    if len(items) <= limit:
        return list(items)
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, limit)]


def _strip(row: Row, low: float, high: float, darkroom: Darkroom) -> Strip:
    turns = _last_branch(_list(row.get("turns")))
    reward = number(row, "reward")
    metrics = row.get("metrics")
    return Strip(
        name=str(row.get("name", "unnamed")),
        step=str(row.get("step", "?")),
        reward=reward,
        grade=_grade(reward, low, high),
        metrics=[(str(key), number(row, "metrics", key)) for key in metrics] if isinstance(metrics, dict) else [],
        expected=_said(row.get("expected")),
        answer=_said(row.get("answer")),
        scored=_is_scored(row),
        turns=[_turn(turn, _list(row.get("images")), darkroom) for turn in turns[:TURNS]],
        turns_left_out=len(_list(row.get("turns"))) - len(turns[:TURNS]),
        images=sum(len(_list(turn.get("images"))) for turn in turns),
        tokens=int(np.nansum([number(turn, "tokens") for turn in turns])),
    )


def _grade(reward: float, low: float, high: float) -> str:
    if not math.isfinite(reward):
        return "between"
    if low == high:
        return "best" if reward > 0 else "worst"
    return "best" if reward == high else "worst" if reward == low else "between"


def _last_branch(turns: list[Any]) -> list[Row]:
    """The turns that lead to the last one; those of other branches are not shown."""
    path: list[Row] = []
    number: Any = len(turns) - 1
    while isinstance(number, int) and 0 <= number < len(turns) and len(path) < len(turns):
        turn = turns[number] if isinstance(turns[number], dict) else {}
        path.append(turn)
        number = turn.get("parent")
    return path[::-1]


def _image(shown: Any, images: list[Any]) -> Any:
    """What is known of an image in a turn: its row in the rollout's table, and where it stands."""
    row = shown.get("image") if isinstance(shown, dict) else None
    if not isinstance(row, int) or not 0 <= row < len(images) or not isinstance(images[row], dict):
        return shown
    return images[row] | {"offset": shown.get("offset")}


def _turn(turn: Row, images: list[Any], darkroom: Darkroom) -> Turn:
    given = turn.get("finish_reason") == DEMONSTRATION
    version = None if given else turn.get("version")
    tiles = [darkroom.tile(_image(shown, images)) for shown in _list(turn.get("images"))]
    sampled = _list(turn.get("token_texts")) if turn.get("role") == "answer" and not given else []
    tokens = list(_sampled(turn, sampled)) if sampled and not tiles else []
    return Turn(
        answer=turn.get("role") == "answer",
        pieces=tokens or list(_pieces(str(turn.get("text", "")), tiles)),
        version="" if version is None else str(version),
    )


def _sampled(turn: Row, texts: list[Any]) -> Iterator[Piece]:
    for text, value in zip_longest(texts[:TOKENS], _list(turn.get("logprobs"))[: len(texts[:TOKENS])]):
        logprob = number({"logprob": value}, "logprob")
        p = math.exp(min(logprob, 0.0)) if math.isfinite(logprob) else math.nan
        yield Piece("token", token=Token(str(text), p, logprob, str(turn.get("version"))))
    if len(texts) > TOKENS:
        yield Piece("gap", f"{len(texts) - TOKENS:,} more tokens")


def _pieces(text: str, tiles: list[Tile]) -> Iterator[Piece]:
    """The text with its images where their tokens stand. Where the text does not have as many
    places as there are images, the images follow it.
    """
    parts = text.split(IMAGE)
    placed = len(parts) == len(tiles) + 1
    if not placed:
        parts = [text]
    for part, tile in zip(parts, [*tiles, None], strict=False):
        yield from _words(part)
        if placed and tile is not None:
            yield Piece("image", tile=tile)
    if not placed:
        yield from (Piece("image", tile=tile) for tile in tiles)


def _words(text: str) -> Iterator[Piece]:
    if len(text) > TEXT:
        yield from _words(text[: TEXT // 2])
        yield Piece("gap", f"{len(text) - TEXT // 2 * 2:,} characters")
        text = text[-(TEXT // 2) :]
    for place, part in enumerate(_MARK.split(text)):
        if part:
            yield Piece("mark" if place % 2 else "text", part)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _said(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 200 else text[:199] + "…"
