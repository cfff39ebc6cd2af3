"""A run's folder as it is found: finished, still running, or torn by a kill."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from filmroll.errors import ConfigError, RunError
from filmroll.run.record import Record, read_record

Row = dict[str, Any]

PHASES = ("warmup", "rl", "sft", "eval")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a run wrote down, and in `notes` whatever of it had to be passed over.

    `warmup`, `rl` and `sft` hold one row for each step, in order; `eval` one for each batch of episodes.
    """

    path: Path
    config: Row = field(default_factory=dict)
    warmup: list[Row] = field(default_factory=list)
    rl: list[Row] = field(default_factory=list)
    sft: list[Row] = field(default_factory=list)
    eval: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def rows(self) -> list[Row]:
        return [*self.warmup, *self.rl, *self.sft, *self.eval]

    @property
    def command(self) -> str:
        """Which command made the run: train, sft or eval."""
        first = self.events[0].get("command") if self.events else None
        return str(first) if first in ("sft", "eval") else "train"

    @property
    def main(self) -> list[Row]:
        """The rows of what the run is about."""
        return {"sft": self.sft, "eval": self.eval}.get(self.command, self.rl)

    @property
    def evaluations(self) -> list[Row]:
        """How each version that was evaluated stood, in order; of one that was so again after a resume, the last."""
        told = {row["version"]: row for row in self.events if row.get("kind") == "evaluated" and _counts(row)}
        return [told[version] for version in sorted(told)]


def read_run(run: Path) -> RunRecord:
    """Everything but the rollouts; only a folder that is not there is an error."""
    if not run.is_dir():
        raise RunError(f"{run} is not a folder", remedy="Name the folder of a run")
    notes: list[str] = []
    rows = _steps(read_lines(run / "metrics.jsonl", notes), notes)
    return RunRecord(
        path=run,
        config=_config(run / "config.json", notes),
        warmup=[row for row in rows if _phase(row) == "warmup"],
        rl=[row for row in rows if _phase(row) == "rl"],
        sft=[row for row in rows if _phase(row) == "sft"],
        eval=[row for row in rows if _phase(row) == "eval"],
        events=read_lines(run / "events.jsonl", notes),
        notes=notes,
    )


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Rollouts of one recorded step, and in `notes` whatever had to be passed over.

    `rows` are the objects as they were written, `records` what they say.
    """

    step: int
    rows: list[Row]
    records: list[Record]
    notes: list[str]


def read_rollouts(run: Path, step: int | None = None, name: str = "*") -> Rollouts:
    """The rollouts of a step, by default the last that was recorded, whose names match a pattern."""
    steps = recorded_steps(run)
    step = max(steps) if step is None else step
    if step not in steps:
        raise ConfigError(f"step {step} was not recorded", remedy=f"These were: {', '.join(map(str, sorted(steps)))}")
    notes: list[str] = []
    written = read_lines(steps[step], notes)
    named = [row for row in written if fnmatchcase(str(row.get("name")), name)]
    if written and not named:
        raise ConfigError(f"no rollout of step {step} is named {name!r}", remedy=f"One is {written[0].get('name')!r}")
    rows, records = [], []
    for row in named:
        try:
            records.append(read_record(row))
            rows.append(row)
        except RunError as error:
            notes.append(f"{steps[step].name}: {str(row.get('name'))[:64]} passed over: {error}.")
    if not records:
        raise RunError(f"{steps[step]} has no rollout that can be read", private=notes[0] if notes else "it is empty")
    return Rollouts(step, rows, records, notes)


def recorded_steps(run: Path) -> dict[int, Path]:
    """The file of each step whose rollouts were recorded; at least one."""
    if not run.is_dir():
        raise ConfigError(f"{run} is not a folder", remedy="Name the folder of a run")
    files = {path.stem.removeprefix("step_"): path for path in (run / "rollouts").glob("step_*.jsonl")}
    steps = {int(number): path for number, path in files.items() if number.isdecimal() and number.isascii()}
    if not steps:
        raise ConfigError(f"{run} has no recorded rollouts", remedy="A run records some in its first step")
    return steps


def read_lines(path: Path, notes: list[str]) -> list[Row]:
    """One object a line; lines that are none are passed over, and `notes` says so."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror}.")
        return []
    lines = content.split(b"\n")
    rows = [_row(line) for line in lines]
    unread = [number for number, (line, row) in enumerate(zip(lines, rows, strict=True), 1) if line.strip() and not row]
    if unread and unread[-1] == len(lines):
        notes.append(f"{path.name}: the last line is torn, as if the writer was killed in mid-write; passed over.")
        unread.pop()
    if unread:
        notes.append(f"{path.name}: {len(unread)} unreadable line(s) passed over, the first is line {unread[0]}.")
    return [row for row in rows if row]


def _row(line: bytes) -> Row | None:
    # The standard library's reader, because it takes the NaN of a loss that has diverged.
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _config(path: Path, notes: list[str]) -> Row:
    try:
        row = _row(path.read_bytes())
    except FileNotFoundError:
        row = None
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror}.")
        return {}
    if row is None:
        notes.append(f"{path.name} is missing or unreadable.")
    return row or {}


def _steps(rows: list[Row], notes: list[str]) -> list[Row]:
    """The rows that count. A resumed run takes up at a checkpoint: from that step on, what was
    written before the resume belongs to a course that was given up.
    """
    placed = [row for row in rows if _place(row) is not None]
    if len(placed) < len(rows):
        notes.append(f"metrics.jsonl: {len(rows) - len(placed)} row(s) without a known phase and step passed over.")
    kept: list[Row] = []
    superseded = 0
    for row in placed:
        while kept and _order(kept[-1]) >= _order(row):
            kept.pop()
            superseded += 1
        kept.append(row)
    if superseded:
        notes.append(f"metrics.jsonl: {superseded} row(s) from before a resume were superseded; the later ones count.")
    return kept


def _counts(row: Row) -> bool:
    return isinstance(row.get("version"), int) and not isinstance(row["version"], bool)


def _phase(row: Row) -> str:
    return str(row.get("phase", "rl" if "reward" in row else "warmup"))


def _place(row: Row) -> tuple[int, int] | None:
    phase, step = _phase(row), row.get("step")
    if phase not in PHASES or not isinstance(step, int) or isinstance(step, bool):
        return None
    return PHASES.index(phase), step


def _order(row: Row) -> tuple[int, int]:
    return _place(row) or (0, 0)
