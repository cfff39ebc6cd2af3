"""Runs whose disk is full: they end with one message, leave nothing half-written, and go on once there is room."""

from __future__ import annotations

import asyncio
import json
import os
import signal
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
from tests.disks import files_no_longer_than, small_disk
from tests.run.test_engines import events, until
from tests.run.test_train import EXAMPLE, command, flags, pids, rows, steps_done, train

MB = 1 << 20
CHECKPOINT_BYTES = 11_899_352


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
    # Who looks while the disk is filling up is warned before.
    said = [line for line in complaint.strip().splitlines() if "more checkpoints with their weights take" not in line]
    assert len(said) == 1, complaint
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


def check_nothing_is_lost_or_trained_twice(directory: Path, total: int) -> None:
    """What was learnt after the last checkpoint is learnt once more, from its samples or anew, and nothing else is."""
    (went_on,) = events(directory, "resumed")
    warmup = len({row["step"] for row in rows(directory, "warmup")})
    noted = [(row["time"], row["step"] + warmup * (row["phase"] == "rl")) for row in rows(directory)]
    before = [number for time, number in noted if time < went_on["time"]]
    after = [number for time, number in noted if time > went_on["time"]]
    restored = events(directory, "restored")[-1]
    held = restored["warmup"] + restored["rl"] + len(events(directory, "caught_up"))
    assert before == list(range(len(before)))
    assert after == list(range(held, total))
    assert held <= len(before)
    # Engines sample with what the trainer has; of a step that was played by older weights alone, there is no gap.
    gaps = [row["logprob_gap_max"] for row in rows(directory, "rl")]
    assert all(gap is None or gap < 1e-3 for gap in gaps)
    assert events(directory, "finished")
    assert json.loads((max((directory / "checkpoints").iterdir()) / "state.json").read_text())["progress"] == {
        "warmup": warmup,
        "rl": total - warmup,
        "skipped": 0,
    }


@pytest.mark.faults
@pytest.mark.timeout(600)
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
    check_nothing_is_lost_or_trained_twice(directory, 3)


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


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_disk_that_fills_up_in_the_middle(tmp_path: Path) -> None:
    """Whatever is written first finds no room: a row, an image, samples, weights, or a checkpoint."""
    directory = tmp_path / "disk" / "run"
    with small_disk(tmp_path / "disk", 256 * MB) as disk:
        more = ["--transport.kind", "files", "--run.restarts", "5"]
        with started(directory, 2, 20, *more) as run:
            until(lambda: steps_done(directory, "rl") >= 1, run)
            disk.fill()
            _, complaint = run.communicate(timeout=300)
        check_it_is_said_once(run.returncode, complaint, directory)
        assert not events(directory, "trainer_died")
        disk.make_room()
        check_all_is_whole(directory)
        resumed(directory)
        check_all_is_whole(directory)
        check_nothing_is_lost_or_trained_twice(directory, 22)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_trainer_is_not_started_into_a_full_disk_again_and_again(tmp_path: Path) -> None:
    """Where it would say that it is there, there is no room: it has five lives and uses one."""
    directory = tmp_path / "run"
    with started(directory, 1, 1000, "--run.restarts", "5") as run:
        until(lambda: steps_done(directory, "rl") >= 1, run)
        processes = pids(directory)
        trainer = json.loads((directory / "processes" / "trainer.json").read_text())["pid"]
        with small_disk(directory / "processes", 64 * 1024) as disk:
            disk.fill()
            os.kill(trainer, signal.SIGKILL)
            _, complaint = run.communicate(timeout=300)
    assert run.returncode == FULL_STATUS, complaint
    assert "process trainer ended because a disk is full" in complaint
    assert "No space left on device" in complaint
    assert f"Make room there; `filmroll train --resume {directory}`" in complaint
    assert "Traceback" not in complaint
    (died,) = events(directory, "trainer_died")
    assert "status -9" in died["error"]
    assert not any(psutil.pid_exists(pid) for pid in processes)
