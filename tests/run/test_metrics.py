"""What a step's row of metrics.jsonl says."""

from __future__ import annotations

from pathlib import Path

from filmroll.families import load_family
from filmroll.rollout.trajectory import Trajectory
from filmroll.rollout.worker import Played
from filmroll.run.metrics import eval_row


def test_no_metric_of_an_environment_takes_the_place_of_a_number_of_the_run(tiny_model: Path) -> None:
    """Whatever it calls them: a resumed run counts rows by their steps."""
    own = {"step": 7.0, "phase": 1.0, "reward": 9.0, "turns": 5.0}
    played = [Played(Trajectory("one", 0, reward=0.5, metrics=own)), Played(Trajectory("two", 0, metrics={"turns": 3}))]
    row = eval_row(2, played, 0, load_family(tiny_model), set(), 1.0)
    assert (row["step"], row["phase"], row["reward"], row["turns"]) == (2, "eval", 0.25, 0)
    assert row["metrics"] == {**own, "turns": 4.0}
