"""Two runs that never ran, for every test of the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.view.runs import START, RunWriter, rl_row, warmup_row


@pytest.fixture
def run(tmp_path: Path) -> RunWriter:
    path = tmp_path / "codeword"
    path.mkdir()
    return RunWriter(path)


@pytest.fixture
def finished(run: RunWriter) -> RunWriter:
    """A run of 5 warm-up steps and 30 steps whose last ten rewards have the mean 0.9."""
    run.config(model="tiny:qwen3_vl", seed=7, environment={"name": "color_codeword", "turns": 3}, rl={"steps": 30})
    run.metrics([warmup_row(step) for step in range(5)])
    run.metrics([rl_row(step, 0.03 * step if step < 20 else 0.9) for step in range(30)])
    run.events(
        {"time": START - 1, "kind": "started"},
        {"time": START + 30, "kind": "checkpoint", "rl": 10},
        {"time": START + 200, "kind": "finished"},
    )
    for step in (0, 10, 20, 29):
        answers = ("ABCD", "ABDC", "AB", "")
        run.rollouts(step, [run.rollout(step, place, answer=answers[place % 4]) for place in range(8)])
    return run
