"""What every benchmark shares: a table for people, and one JSON line for programs, last."""

from __future__ import annotations

import json
import operator
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

JUDGE = {"<=": operator.le, ">=": operator.ge}


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(title=title)
    for name in header:
        table.add_column(name, justify="left" if name == header[0] else "right")
    for row in rows:
        table.add_row(*(f"{cell:,.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(width=110).print(table)


def conclude(benchmark: str, figures: dict[str, float], goals: dict[str, tuple[str, float]]) -> None:
    """Say which goals are met, then the JSON line."""
    for name, (relation, goal) in goals.items():
        met = JUDGE[relation](figures[name], goal)
        print(f"{'met   ' if met else 'MISSED'}  {name} = {figures[name]:,.4g}, goal {relation} {goal:,g}")
    line = {"benchmark": benchmark, "figures": figures, "goals": {name: list(goal) for name, goal in goals.items()}}
    print(json.dumps(line))


def in_process(file: str, *arguments: str) -> dict[str, Any]:
    """Run this file again with arguments, in a process of its own, and take the JSON it prints last."""
    done = subprocess.run([sys.executable, file, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{file} {' '.join(arguments)} failed:\n{done.stdout}\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result
