"""Training runs that play held-out episodes between their steps."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from filmroll.run.courses.groups import episode_seed
from filmroll.view.records import read_run
from tests.run.test_train import command, rows, train

HELD_OUT = [
    "--rl.evaluate_every", "2", "--eval.episodes", "5", "--eval.batch", "3", "--eval.samples", "2",
    "--run.record_every", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "held_out"
    done = train(directory, 1, 3, *HELD_OUT, "--rl.ahead", "1", "--model", str(tiny_model))
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert f"; on held-out episodes: {rows(directory, 'rl')[-1]['held_out_reward']:.3f}; report: " in last
    return directory


def test_the_policy_is_evaluated_before_the_first_step_every_so_often_and_after_the_last(run: Path) -> None:
    found = read_run(run).evaluations
    assert [one["version"] for one in found] == [0, 2, 3]
    assert {(one["episodes"], one["rollouts"], one["failed"]) for one in found} == {(5, 10, 0)}
    played = rows(run, "rl")
    assert ["held_out_reward" in row for row in played] == [False, True, True]
    assert [row["held_out_reward"] for row in played[1:]] == [one["reward"] for one in found[1:]]
    assert ["evaluate" in row["seconds"] for row in played] == [False, True, True]
    for row in played:
        assert row["seconds"]["total"] > row["seconds"]["train"] + row["seconds"].get("evaluate", 0)


def test_a_run_that_is_made_longer_is_evaluated_on_the_same_episodes(run: Path) -> None:
    """And again after its new last step."""
    resume = command("train", "--resume", str(run), "--rl.steps", "4", "--rl.evaluate_every", "3")
    done = subprocess.run(resume, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [one["version"] for one in read_run(run).evaluations] == [0, 2, 3, 4]
    events = [json.loads(line) for line in (run / "events.jsonl").open()]
    (told,) = [one for one in events if one["kind"] == "reconfigured"]
    assert (told["rl.steps"], told["rl.evaluate_every"]) == ([3, 4], [2, 3])
    report = (run / "report.html").read_text()
    assert "held-out episodes" in report


def test_none_of_them_is_trained_on(run: Path) -> None:
    """Not an episode, and not a sample."""
    config = json.loads((run / "config.json").read_text())
    for row in rows(run, "rl"):
        assert row["rollouts"] == config["rl"]["prompts"] * config["rl"]["rollouts_per_prompt"]
    seeds = {episode_seed(config["seed"], "eval", number) for number in range(5)}
    trained = {episode_seed(config["seed"], "rl", step, prompt) for step in range(4) for prompt in range(2)}
    assert len(seeds | trained) == 5 + 8
