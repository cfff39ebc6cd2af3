"""Every benchmark is imported, and those that are quick with small counts run. What they measure so means nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL: dict[str, dict[str, Any]] = {
    "layout": {"ROUNDS": 1},
    "pixel_memory": {"IMAGES": 2, "SIDE": 64},
    "packing": {"GROUPS": 1, "ROLLOUTS": 2, "ROUNDS": 1},
    "store": {"SIZES": {"10 KB": (20, 2)}, "ROUNDS": 1, "READS": 1},
    "training": {"SIDES": (64,), "GROUPS": (1, 8), "TURNS": 1},
}
"""Their constants. What they start in other processes has its own."""
QUICK = ["layout", "packing", "store", "training"]
"""The last one measures what pixel_memory does."""

# In one process: torch is imported once.
RUN = """
import importlib, pathlib, sys
sys.path.append(sys.argv[1])
modules = {path.stem: importlib.import_module(path.stem) for path in pathlib.Path(sys.argv[1]).glob("*.py")}
small, quick = eval(sys.argv[2])
for name, counts in small.items():
    unknown = counts.keys() - vars(modules[name]).keys()
    assert not unknown, f"{name} has no {unknown}"
    vars(modules[name]).update(counts)
sys.argv[1:] = ["--samples", "8", "--rounds", "1"]
for name in quick:
    modules[name].main()
"""


def test_they_run() -> None:
    command = [sys.executable, "-c", RUN, str(BENCHMARKS), repr((SMALL, QUICK))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    concluded = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [one["benchmark"] for one in concluded] == QUICK
    assert all(one["figures"].keys() >= one["goals"].keys() for one in concluded)
