"""A trainer and a worker that are killed in the middle of a run: it goes on, and the policy is the one it would be."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.run.test_engines import (
    STEPS,
    TOGETHER,
    announced,
    check_nothing_is_lost_or_trained_twice,
    events,
    requests,
    steps,
    training,
    until,
)
from tests.run.test_train import rows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def kill(directory: Path, name: str) -> None:
    os.kill(announced(directory, name)["pid"], signal.SIGKILL)


def warmed(directory: Path) -> int:
    return len(rows(directory, "warmup")) if (directory / "metrics.jsonl").exists() else 0


@pytest.mark.parametrize("transport", ["zmq", "files"])
def test_a_trainer_killed_in_both_phases_learns_again_what_no_checkpoint_holds(tmp_path: Path, transport: str) -> None:
    """Engine and trainer agree on every token that the engine samples afterwards: the weights are those it had."""
    directory = tmp_path / "run"
    chosen = ["--transport.kind", transport, "--run.checkpoint_every", "100"]
    with training(directory, *chosen) as run:
        until(lambda: warmed(directory) == 1, run)
        kill(directory, "trainer")
        until(lambda: steps(directory) == 1, run)
        kill(directory, "trainer")
        assert run.wait(400) == 0, run.communicate()
    check_nothing_is_lost_or_trained_twice(directory, STEPS)
    assert len(rows(directory, "warmup")) == 2
    assert len(events(directory, "trainer_died")) == 2
    again = [event["learnt_again"] for event in events(directory, "trainer_restarted")]
    # Nothing was saved: all that was learnt before is learnt again, the step at hand perhaps among it.
    assert again[0] in (1, 2)
    assert again[1] in (3, 4)


def test_a_worker_killed_within_rollouts_plays_them_again(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with training(directory) as run:
        until(lambda: steps(directory) == 1, run)
        engine = announced(directory, "engine")["endpoint"]
        before = requests(engine)
        until(lambda: requests(engine) >= before + TOGETHER, run)
        kill(directory, "worker")
        assert run.wait(400) == 0, run.communicate()
    check_nothing_is_lost_or_trained_twice(directory, STEPS)
    (died,) = events(directory, "worker_died")
    assert "status -9" in died["error"]
    assert len(events(directory, "worker_restarted")) == 1
    assert [row["restarts"] for row in rows(directory, "rl")] == [0, 1, 0]


@pytest.mark.parametrize("victim", ["trainer", "worker"])
def test_one_that_dies_again_and_again_ends_the_run(tmp_path: Path, victim: str) -> None:
    directory = tmp_path / "run"
    with training(directory, "--run.restarts", "1") as run:
        until(lambda: steps(directory) == 1, run)
        kill(directory, victim)
        until(lambda: len(events(directory, f"{victim}_restarted")) == 1, run)
        kill(directory, victim)
        assert run.wait(120) == 1
        complaint = run.communicate()[1]
    assert f"process {victim} ended with status -9, 2 times within 10 minutes" in complaint
    assert "--resume" in complaint
    assert "Traceback" not in complaint
