"""Whole runs with a trainer of two ranks, one of which is killed; and gone on with by as many as one likes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.run.test_train import EXAMPLE, command, flags, rows, steps_done, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
CHOSEN = ["--trainer.ranks", "2", "--trainer.shard_mb", "1", "--engine.replicas", "2", "--run.restarts", "0"]


def other_rank(directory: Path) -> int:
    """The rank that does not speak to the orchestrator."""
    first = psutil.Process(json.loads((directory / "processes" / "trainer.json").read_text())["pid"])
    (other,) = [one.pid for one in first.parent().children() if one.pid != first.pid]
    return other


def test_a_rank_that_is_killed_ends_the_run_and_resuming_goes_on(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    run = subprocess.Popen(
        command("train", str(EXAMPLE), *flags(directory, 2, 4, *CHOSEN)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: steps_done(directory, "rl") >= 1, 300)
    os.kill(other_rank(directory), signal.SIGKILL)
    complaint = run.communicate(timeout=200)[1]
    assert run.returncode == 1
    assert "process trainer ended with status 1" in complaint
    assert "rank 1 of 2 was ended by SIGKILL" in complaint
    assert "--resume" in complaint
    assert "Traceback" not in complaint
    assert len(rows(directory, "rl")) < 4

    resumed = subprocess.run(
        command("train", "--resume", str(directory)), capture_output=True, text=True, check=False, timeout=300
    )
    assert resumed.returncode == 0, resumed.stderr
    for phase, steps in (("warmup", 2), ("rl", 4)):
        latest = {row["step"]: row for row in rows(directory, phase)}
        assert sorted(latest) == list(range(steps))
        for row in latest.values():
            assert row["micro_batches"] % 2 == 0
            assert len(set(row["trainer_receipt"].values())) == 1
            assert row["trainer_receipt"]["consumed"] > 0
    # What engines sample by is what both ranks hold.
    on_policy = [row["logprob_gap_max"] for row in rows(directory, "rl") if row["logprob_gap_max"] is not None]
    assert on_policy
    assert max(on_policy) < 1e-4
    newest = max((directory / "checkpoints").iterdir())
    assert newest.name == "step_000006"
    assert len(list(newest.glob("*.safetensors"))) == 2
    assert len(list((directory / "weights" / "step_4").glob("model-*.safetensors"))) > 1


def test_a_node_that_is_killed_is_started_again_and_other_numbers_of_ranks_go_on(tmp_path: Path) -> None:
    """Two nodes of a rank each, then one process, then two ranks on one node."""
    directory = tmp_path / "run"
    chosen = ["--trainer.ranks", "2", "--trainer.nodes", "2"]
    run = subprocess.Popen(
        command("train", str(EXAMPLE), *flags(directory, 2, 100000, *chosen)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: steps_done(directory, "rl") >= 1, 300)
    second = json.loads((directory / "processes" / "trainer-1.json").read_text())["pid"]
    psutil.Process(second).parent().kill()
    wait_until(lambda: events(directory, "trainer_restarted"), 300)
    assert "process trainer-1 ended with status -9" in events(directory, "trainer_died")[0]["error"]
    run.send_signal(signal.SIGUSR1)
    said = run.communicate(timeout=200)
    assert run.returncode == 75, said
    assert not psutil.pid_exists(second)

    done = steps_done(directory, "rl")
    for count in (1, 2):
        numbers = ["--trainer.ranks", str(count), "--trainer.nodes", "1", "--rl.steps", str(done + 2 * count)]
        resumed = subprocess.run(
            command("train", "--resume", str(directory), *numbers),
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert resumed.returncode == 0, resumed.stderr
        newest = max((directory / "checkpoints").iterdir())
        assert json.loads((newest / "state.json").read_text())["ranks"] == count
    played = rows(directory, "rl")
    assert sorted({row["step"] for row in played}) == list(range(done + 4))
    # Whoever trains holds what engines sample by.
    gaps = [row["logprob_gap_max"] for row in played if row["logprob_gap_max"] is not None]
    assert max(gaps) < 1e-4
    assert [event["rl"] for event in events(directory, "restored")] == [0, done, done + 2]


def events(directory: Path, kind: str) -> list[dict[str, Any]]:
    every = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    return [event for event in every if event["kind"] == kind]
