"""What the page says in words and numbers, worked out from a run's record."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from filmroll.view import restarts
from filmroll.view.records import Row, RunRecord
from filmroll.view.series import column, last_mean, number, total
from filmroll.view.words import size

RUNNING_SECONDS = 600.0
"""A run without an end that has written nothing for so long is taken to be stopped."""
_ENDS = {"finished": "", "failed": "", "stopped": "it was told to end, and can be resumed"}
"""Events that end a run, and what is said of one whose event says nothing."""
_FOLDED = {"checkpoint", "caught_up"}
"""Events of which those in a row are listed as one."""
_COUNTS = ("referenced", "verified", "decoded", "consumed")
_SECRET = re.compile(r"secret|password|passwd|credential|api_?key|access_?key|auth", re.IGNORECASE)
_HIDDEN = "(not shown)"
_TELLING = {
    "train": ("model", "seed", "environment.", "warmup.", "rl.", "steps", "engine.kind", "sampling.temperature"),
    "sft": ("model", "seed", "data.", "sft."),
    "eval": ("model", "seed", "environment.", "eval.", "sampling.", "engine.kind"),
}
"""The fields that tell one run from another, by the command that made it."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    reward: float
    error: float
    episodes: float
    version: float


@dataclass(frozen=True, slots=True)
class Headline:
    command: str
    reward: float
    over: int
    error: float
    """Of the mean reward of an evaluation."""
    passed: list[tuple[str, float]]
    """The last evaluation's pass@k, by k."""
    evaluated: Evaluated | None
    """Of a run that trains, how it last stood on held-out episodes."""
    loss: float
    """Of supervised training: on held-out rows where there are any."""
    held_out: bool
    control: float
    chance: float
    warmup_steps: int
    rl_steps: int
    seconds: float
    restarts: list[tuple[str, int]]
    """What came back after a death or an end, and how often."""
    samples_stale: float
    steps_skipped: int
    images_missing: float
    samples_masked: float
    status: str
    status_detail: str


@dataclass(frozen=True, slots=True)
class ReceiptLine:
    """The receipts of one process over one phase; `first` is the first step whose counts differ.

    Images that were missing, and were counted so, are not a difference.
    """

    phase: str
    who: str
    sums: dict[str, float]
    missing: float
    steps: int
    without: int
    differing: int
    first: tuple[int, str] | None


@dataclass(frozen=True, slots=True)
class Wire:
    """Bytes over the whole run, and what pixels would have weighed in the same places."""

    requests: float
    samples: float
    images: float
    pixels: float
    placements: float
    files: float
    images_per_second: float

    @property
    def ratio(self) -> float:
        sent = self.requests + self.samples + self.images
        return self.pixels / sent if sent and self.pixels else math.nan


@dataclass(frozen=True, slots=True)
class Event:
    at: float
    kind: str
    many: int
    """How many in a row it stands for, as the last of them."""
    fields: list[tuple[str, str]] = field(default_factory=list)


def headline(run: RunRecord, control: RunRecord | None, now: float) -> Headline:
    reward, over = last_mean(run.main, "reward")
    trains = run.command == "train"
    told = run.evaluations if trains else [row for row in run.events if row.get("kind") == "evaluated"]
    evaluated = told[-1] if told else {}
    if run.command == "eval" and math.isfinite(number(evaluated, "reward")):
        reward = number(evaluated, "reward")
    held_out, _ = last_mean([row for row in run.sft if "held_out_loss" in row][-1:], "held_out_loss")
    passed = evaluated.get("pass_at")
    times = _times(run)
    status, detail = _status(run, now, times)
    return Headline(
        command=run.command,
        reward=reward,
        over=over,
        error=number(evaluated, "reward_error"),
        passed=[(k, number(passed, k)) for k in passed] if isinstance(passed, dict) else [],
        evaluated=_evaluated(evaluated) if trains and told else None,
        loss=held_out if math.isfinite(held_out) else last_mean(run.sft, "loss")[0],
        held_out=math.isfinite(held_out),
        control=last_mean(control.rl, "reward")[0] if control else math.nan,
        chance=_chance(run),
        warmup_steps=len(run.warmup),
        rl_steps=len(run.main),
        seconds=max(times) - min(times) if times else math.nan,
        restarts=restarts.counts(run),
        samples_stale=total(run.rl, "samples_stale"),
        steps_skipped=sum(row.get("updated") is False for row in run.rl),
        images_missing=total(run.rows, "images_missing"),
        samples_masked=total(run.rows, "samples_masked"),
        status=status,
        status_detail=detail,
    )


def _evaluated(event: Row) -> Evaluated:
    return Evaluated(*(number(event, name) for name in ("reward", "reward_error", "episodes", "version")))


def receipts(run: RunRecord) -> list[ReceiptLine]:
    """A line for every phase and process that wrote at least one receipt."""
    phases = (
        ("warm-up", run.warmup),
        ("reinforcement learning", run.rl),
        ("supervised training", run.sft),
        ("evaluation", run.eval),
    )
    lines = [_receipt_line(phase, who, rows) for phase, rows in phases for who in ("engine", "trainer")]
    return [line for line in lines if line.steps]


def wire(run: RunRecord) -> Wire:
    rows = run.rows
    return Wire(
        requests=total(rows, "request_bytes"),
        samples=total(rows, "sample_bytes"),
        images=total(rows, "image_bytes"),
        pixels=total([row for row in rows if _sent(row) > 0], "pixel_bytes"),
        placements=total(rows, "images"),
        files=total(rows, "images_new"),
        images_per_second=last_mean(run.main, "images_per_second")[0],
    )


def events(run: RunRecord) -> list[Event]:
    """Every event, with seconds since the first sign of the run; checkpoints in a row as one."""
    times = _times(run)
    start = min(times) if times else math.nan
    listed: list[Event] = []
    for row in run.events:
        kind = str(row.get("kind", "?"))
        again = kind in _FOLDED and bool(listed) and listed[-1].kind == kind
        many = listed.pop().many + 1 if again else 1
        fields = [(key, _short(value)) for key, value in row.items() if key not in ("time", "kind")]
        listed.append(Event(number(row, "time") - start, kind, many, fields))
    return listed


def settings(config: Row, command: str = "train", limit: int = 24) -> list[tuple[str, str]]:
    """The fields that tell one run from another, as dotted names and values."""
    return [(name, _short(value)) for name, value in _flat(config) if name.startswith(_TELLING[command])][:limit]


def whole(config: Row) -> str:
    """All of the configuration as JSON, without the values of keys, passwords and environment variables."""
    return json.dumps(_open(config), indent=2, ensure_ascii=False, default=str)


def broken(run: RunRecord) -> list[str]:
    """Steps whose loss or reward is not a number: a plot would only show a gap."""
    said = []
    for phase, rows, keys in (
        ("warm-up", run.warmup, ("loss",)),
        ("rl", run.rl, ("loss", "reward")),
        ("sft", run.sft, ("loss",)),
    ):
        for key in keys:
            steps = [row["step"] for row in rows if key in row and not math.isfinite(number(row, key))]
            if steps:
                said.append(f"{len(steps)} {phase} step(s) have a {key} that is no number, first step {steps[0]}.")
    return said


def room(run: RunRecord) -> list[str]:
    """The last time that the disk was found to be nearly full."""
    found = [row for row in run.events if row.get("kind") == "room_short"]
    return [
        f"The disk had {size(number(row, 'free'))} left, and two more checkpoints with their weights "
        f"take {size(number(row, 'needed'))}."
        for row in found[-1:]
    ]


def _times(run: RunRecord) -> list[float]:
    times = column([*run.events, *run.rows], "time")
    return [value for value in times.tolist() if math.isfinite(value)]


def _status(run: RunRecord, now: float, times: list[float]) -> tuple[str, str]:
    kinds = [str(row.get("kind")) for row in run.events]
    if kinds and kinds[-1] in _ENDS:
        last = run.events[-1]
        told = next((_short(last[key], 400) for key in ("error", "problem", "message", "reason") if key in last), "")
        return kinds[-1], told or _ENDS[kinds[-1]]
    if not times:
        return "not started", "nothing is written yet"
    if now - max(times) <= RUNNING_SECONDS:
        return "running", "its last record is less than ten minutes older than this page"
    return "stopped", "no end was written, and nothing was for ten minutes"


def _chance(run: RunRecord) -> float:
    """The reward of guessing, where the run says it: in an event, or beside the environment."""
    found = [number(row, "chance") for row in run.events] + [number(run.config, "environment", "chance")]
    return next((value for value in found if math.isfinite(value)), math.nan)


def _receipt_line(phase: str, who: str, rows: Sequence[Row]) -> ReceiptLine:
    key = f"{who}_receipt"
    counted = [row for row in rows if isinstance(row.get(key), dict)]
    wrong = [row for row in counted if not _agree(row[key])]
    first = None
    if wrong:
        counts = (number(wrong[0], key, name) for name in _COUNTS)
        first = wrong[0]["step"], " / ".join("?" if math.isnan(value) else f"{value:.0f}" for value in counts)
    return ReceiptLine(
        phase=phase,
        who=who,
        sums={name: total(counted, key, name) for name in _COUNTS},
        missing=total(counted, key, "missing"),
        steps=len(counted),
        without=len(rows) - len(counted),
        differing=len(wrong),
        first=first,
    )


def _agree(receipt: Row) -> bool:
    referenced, verified, decoded, consumed = (number(receipt, name) for name in _COUNTS)
    missing = number(receipt, "missing") if "missing" in receipt else 0
    return math.isfinite(referenced) and referenced == consumed == verified + missing == decoded + missing


def _sent(row: Row) -> float:
    parts = (number(row, key) for key in ("request_bytes", "sample_bytes", "image_bytes"))
    return sum(value for value in parts if math.isfinite(value))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield name, _HIDDEN if _SECRET.search(name) else value
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{name}.{key}" if name else str(key))


def _open(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        # Any variable may hold a key, whatever it is called.
        return {key: _HIDDEN if name == "env_vars" else _open(inner, str(key)) for key, inner in value.items()}
    return _HIDDEN if _SECRET.search(name) and value else value


def _short(value: Any, limit: int = 160) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"
