"""Full disks in every course: a stream through a socket, supervised training, an evaluation; and then there is room."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from filmroll.durable import FULL_STATUS
from tests.disks import small_disk
from tests.run import test_eval, test_sft
from tests.run.test_engines import until
from tests.run.test_full_disk import (
    MB,
    check_all_is_whole,
    check_it_is_said_once,
    check_nothing_is_lost_or_trained_twice,
    resumed,
    started,
)
from tests.run.test_train import steps_done, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


def test_samples_that_go_through_a_socket_need_no_room_and_are_learnt_once(tmp_path: Path) -> None:
    """What no checkpoint holds is played and learnt anew: a socket keeps nothing beyond its run."""
    directory = tmp_path / "disk" / "run"
    with small_disk(tmp_path / "disk", 256 * MB) as disk:
        with started(directory, 2, 20, "--transport.kind", "zmq", "--run.restarts", "5") as run:
            until(lambda: steps_done(directory, "rl") >= 1, run, 800)
            disk.fill()
            _, complaint = run.communicate(timeout=600)
        check_it_is_said_once(run.returncode, complaint, directory)
        assert test_sft.events(directory)[-1]["kind"] != "finished"
        assert not (directory / "samples").exists()
        disk.make_room()
        check_all_is_whole(directory)
        resumed(directory)
        check_all_is_whole(directory)
        check_nothing_is_lost_or_trained_twice(directory, 22)


def test_supervised_training_is_warned_ends_and_goes_on(tmp_path: Path, tiny_model: Path) -> None:
    """A disk that just holds it is told of at once. No room for conversations: their step is not noted either."""
    data = test_sft.make(tmp_path / "data", 32)
    with small_disk(tmp_path / "disk", 30 * MB):
        directory = tmp_path / "disk" / "run"
        words = test_sft.flags(directory, data, tiny_model, "--run.record_every", 100, "--run.checkpoint_every", 100)
        run = subprocess.Popen(
            [sys.executable, "-m", "filmroll", "sft", *map(str, words), "--sft.epochs", "2"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_until(lambda: (directory / "metrics.jsonl").exists(), 800)
        with small_disk(directory / "rollouts", 64 * 1024) as full:
            full.fill()
            _, complaint = run.communicate(timeout=600)
        assert run.returncode == FULL_STATUS, complaint
        warning, error = complaint.strip().splitlines()
        assert f"the disk of {directory} has " in warning
        assert "FullError: there is no room for rollouts/step_000007.jsonl" in error
        assert f"Make room there; `filmroll sft --resume {directory}` goes on from the last checkpoint" in error
        assert [row["step"] for row in test_sft.rows(directory)] == list(range(7))
        kinds = [event["kind"] for event in test_sft.events(directory)]
        assert kinds.index("room_short") < kinds.index("restored")
        assert "two more checkpoints with their weights" in (directory / "report.html").read_text()

        done = test_sft.filmroll("sft", "--resume", directory)
        assert done.returncode == 0, done.stderr
        assert sorted({row["step"] for row in test_sft.rows(directory)}) == list(range(8))
        assert (directory / "rollouts" / "step_000007.jsonl").is_file()
        assert (directory / "trained").is_dir()


def test_an_evaluation_ends_with_one_line_and_another_is_made(tmp_path: Path, tiny_model: Path) -> None:
    with small_disk(tmp_path / "disk", 4 * MB) as disk:
        disk.fill(leave=32 * 1024)
        words = ["eval", tiny_model, "color_codeword", *test_eval.SMALL, "--run.directory", tmp_path / "disk" / "eval"]
        full = test_eval.filmroll(*words)
        assert full.returncode == FULL_STATUS, full.stdout + full.stderr
        (line,) = full.stderr.strip().splitlines()
        assert "FullError: " in line
        assert line.endswith("Make room there and start it again")
        first = tmp_path / "disk" / "eval"
        for row in test_sft.rows(first) if (first / "metrics.jsonl").exists() else []:
            assert (first / "rollouts" / f"step_{row['step']:06d}.jsonl").is_file()
        disk.make_room()
        done = test_eval.filmroll(*words)
        assert done.returncode == 0, done.stderr
        assert "mean reward" in done.stdout
        assert len(test_eval.records(tmp_path / "disk" / "eval-2")) == 10
