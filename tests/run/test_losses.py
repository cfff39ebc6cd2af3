"""Whole runs that hold the policy to a reference, or that find their samples too old."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from filmroll.engine.weights import version_folder
from tests.run.test_train import command, rows, train


def events(directory: Path, kind: str) -> list[dict[str, object]]:
    every = [json.loads(line) for line in (directory / "events.jsonl").open()]
    return [one for one in every if one["kind"] == kind]


def test_a_run_stays_close_to_what_the_warm_up_left_and_so_it_does_gone_on_with(
    tiny_model: Path, tmp_path: Path
) -> None:
    """The first step begins at the reference; later ones have left it, and its weights stay where they were.

    Gone on with, it is not held to the policy of its checkpoint, from which the first step would be no way away.
    """
    directory = tmp_path / "held"
    held = ["--loss.kl", "0.05", "--rl.ahead", "0", "--model", str(tiny_model)]
    done = train(directory, 3, 3, *held)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *others = [row["reference_kl"] for row in rows(directory, "rl")]
    assert first == pytest.approx(0, abs=1e-9)
    assert all(later > 1e-7 for later in others)
    assert all(row["reference_kl"] is None for row in rows(directory, "warmup"))
    assert [path.name for path in (directory / "reference").iterdir()] == [version_folder(Path(), 0).name]
    kept = {path.name: path.read_bytes() for path in version_folder(directory / "reference", 0).iterdir()}

    again = command("train", "--resume", str(directory), "--rl.steps", "5")
    done = subprocess.run(again, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    away = [row["reference_kl"] for row in rows(directory, "rl")]
    assert len(away) == 5
    assert away[3] > away[2] / 100
    assert {path.name: path.read_bytes() for path in version_folder(directory / "reference", 0).iterdir()} == kept
    assert not version_folder(directory / "weights", 0).exists()


def test_samples_that_are_too_old_are_left_out_and_counted(tiny_model: Path, tmp_path: Path) -> None:
    """Played two steps ahead, and none may be older than the policy.

    While step 0 trains, steps 1 and 2 are played with the same weights: nothing of them is left. Their policy stays,
    so step 3, which was played after the update, is as young as it is.
    """
    directory = tmp_path / "old"
    strict = ["--rl.ahead", "2", "--rl.max_off_policy", "0", "--run.checkpoint_every", "1", "--model", str(tiny_model)]
    done = train(directory, 1, 4, *strict)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = rows(directory, "rl")
    assert [row["updated"] for row in steps] == [True, False, False, True]
    assert [row["version"] for row in steps] == [1, 1, 1, 2]
    assert [row["samples_stale"] for row in steps] == [0, 8, 8, 0]
    assert [row["trained_tokens"] > 0 for row in steps] == [True, False, False, True]
    assert steps[1]["loss"] == 0
    assert steps[1]["entropy"] is None
    assert [(one["step"], one["version"]) for one in events(directory, "step_skipped")] == [(1, 1), (2, 1)]
    stale = [(one["step"], one["dropped"], one["left"]) for one in events(directory, "samples_stale")]
    assert stale == [(1, 8, 0), (2, 8, 0)]
    assert sorted(path.name for path in (directory / "weights").glob("step_*")) == ["step_1", "step_2"]
    state = json.loads(max((directory / "checkpoints").glob("step_*/state.json")).read_text())
    assert state["progress"]["skipped"] == 2
    assert (directory / "report.html").exists()
