"""A run's folder as it is found: finished, still running, or torn by a kill."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filmroll.errors import RunError

Row = dict[str, Any]

PHASES = ("warmup", "rl")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a run wrote down, and in `notes` whatever of it had to be passed over.

    `warmup` and `rl` hold one row for each step, in order.
    """

    path: Path
    config: Row = field(default_factory=dict)
    warmup: list[Row] = field(default_factory=list)
    rl: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def rows(self) -> list[Row]:
        return [*self.warmup, *self.rl]


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
        events=read_lines(run / "events.jsonl", notes),
        notes=notes,
    )


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


def _phase(row: Row) -> str:
    return str(row.get("phase", "rl" if "reward" in row else "warmup"))


def _place(row: Row) -> tuple[int, int] | None:
    phase, step = _phase(row), row.get("step")
    if phase not in PHASES or not isinstance(step, int) or isinstance(step, bool):
        return None
    return PHASES.index(phase), step


def _order(row: Row) -> tuple[int, int]:
    return _place(row) or (0, 0)
