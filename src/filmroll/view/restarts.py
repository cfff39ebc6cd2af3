"""Where a run was interrupted: its processes that were started again, and the run itself that was resumed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from filmroll.view.records import RunRecord
from filmroll.view.series import column, number

_COUNTED = {
    "engine_restarted": ("engine", "engine restarts"),
    "trainer_restarted": ("trainer", "trainer restarts"),
    "worker_restarted": ("worker", "worker restarts"),
    "resumed": ("resumed", "times resumed"),
}
"""By the kind of event: what stands beside a curve, and what is counted."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What came back, and how many steps were done by then."""

    what: str
    step: int


def counts(run: RunRecord) -> list[tuple[str, int]]:
    """How often anything came back, by what it was; nothing that never did."""
    kinds = Counter(str(row.get("kind")) for row in run.events)
    return [(label, kinds[kind]) for kind, (_, label) in _COUNTED.items() if kinds[kind]]


def marks(run: RunRecord) -> list[Mark]:
    """Everything that came back after a first step, in order, by the steps before it that count."""
    done = column(run.main, "time")
    back = [(str(row.get("kind")), number(row, "time")) for row in run.events]
    found = [Mark(_COUNTED[kind][0], int((done < at).sum())) for kind, at in back if kind in _COUNTED]
    return [mark for mark in found if mark.step > 0]
