"""Runs whose disk is full: they end with one message, leave nothing half-written, and go on once there is room."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from filmroll.durable import FULL_STATUS
from filmroll.engine.weights import MANIFEST, check_weights
from filmroll.errors import DiskFullError
from filmroll.run.processes.child import Child
from filmroll.run.processes.lives import Lives
from filmroll.view.report import closing_report
from tests.disks import files_no_longer_than
from tests.run.test_engines import events
from tests.run.test_train import EXAMPLE, command, flags, pids, rows, train

MB = 1 << 20
CHECKPOINT_BYTES = 11_899_352
WEIGHTS_BYTES = 4 * MB


def started(directory: Path, warmup: int, rl: int, *more: str) -> subprocess.Popen[str]:
    arguments = command("train", str(EXAMPLE), *flags(directory, warmup, rl, *more))
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def resumed(directory: Path) -> None:
    done = subprocess.run(
        command("train", "--resume", str(directory)), capture_output=True, text=True, check=False, timeout=250
    )
    assert done.returncode == 0, done.stdout + done.stderr


def check_it_is_said_once(status: int | None, complaint: str, directory: Path) -> None:
    """One line, which names the place and the way on; and no process is left."""
    assert status == FULL_STATUS, complaint
    assert len(complaint.strip().splitlines()) == 1, complaint
    assert "FullError: " in complaint
    assert "bytes are free" in complaint
    assert f"Make room there; `filmroll train --resume {directory}` goes on from the last checkpoint" in complaint
    assert not any(psutil.pid_exists(pid) for pid in pids(directory))


def check_all_is_whole(directory: Path) -> None:
    """What bears a name is whole, and nothing lies beside it."""
    for path in [directory / "metrics.jsonl", directory / "events.jsonl", *(directory / "rollouts").iterdir()]:
        lines = path.read_text().split("\n")
        assert lines.pop() == ""
        assert all(json.loads(line) for line in lines)
    for folder in (directory / "checkpoints").iterdir():
        assert (folder / "state.json").is_file(), folder
    for folder in (directory / "weights").iterdir():
        shapes = {
            name: tuple(form["shape"]) for name, form in json.loads((folder / MANIFEST).read_text())["tensors"].items()
        }
        assert check_weights(folder.parent, int(folder.name.removeprefix("step_")), shapes).version >= 0
    images = directory / "assets" / "images"
    assert not list((images / "tmp").iterdir())
    assert not list(directory.glob("**/*.partial"))


def check_every_step_is_trained(directory: Path, warmup: int, rl: int) -> None:
    """Each step, in the order of steps; what no checkpoint held is noted once more, and nothing else."""
    for phase, number in (("warmup", warmup), ("rl", rl)):
        assert sorted({row["step"] for row in rows(directory, phase)}) == list(range(number))
    held = [event["warmup"] + event["rl"] for event in events(directory, "restored")]
    assert len(events(directory, "restored")) == len(held)
    assert events(directory, "finished")


def test_a_checkpoint_without_room_ends_the_run_which_then_goes_on(tmp_path: Path) -> None:
    """A limit on files does so everywhere: weights of 4 MB pass, a checkpoint does not."""
    directory = tmp_path / "run"
    with files_no_longer_than(8 * MB):
        done = train(directory, 1, 2)
    check_it_is_said_once(done.returncode, done.stderr, directory)
    assert f"checkpoint step_000002, {CHECKPOINT_BYTES:,} bytes: File too large" in done.stderr
    assert not list((directory / "checkpoints").iterdir())
    check_all_is_whole(directory)
    (failed,) = events(directory, "failed")
    assert "File too large" in failed["error"]
    assert not events(directory, "trainer_died")
    assert "File too large" in (directory / "report.html").read_text()

    resumed(directory)
    check_every_step_is_trained(directory, 1, 2)


def exits_with(status: int) -> list[str]:
    return [sys.executable, "-c", f"raise SystemExit({status})"]


def test_a_process_that_found_its_disk_full_is_not_started_again() -> None:
    async def die(status: int) -> Child:
        process = await asyncio.create_subprocess_exec(*exits_with(status))
        child = Child("trainer", process, lambda: "")
        await child.exited
        return child

    lives = Lives(5)
    lives.spend(asyncio.run(die(1)))
    with pytest.raises(DiskFullError, match="process trainer ended because a disk is full"):
        lives.spend(asyncio.run(die(FULL_STATUS)))


def test_a_run_is_not_worse_without_its_report(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with files_no_longer_than(1000):
        said = closing_report(tmp_path)
    assert said.startswith("not written: there is no room for the report: File too large")
    assert f"`filmroll report {tmp_path}`" in said
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path: Path) -> None:
    with files_no_longer_than(100):
        done = train(tmp_path / "run", 1, 1)
    assert done.returncode == FULL_STATUS
    assert "there is no room for" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
