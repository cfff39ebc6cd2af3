"""A disk that gets short is told of before it is full: in the log, in the events, and in the report."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.room import Room
from filmroll.view.report import closing_report
from tests.disks import small_disk

KB = 1024


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model-1-of-2.safetensors").write_bytes(bytes(20 * KB))
    (folder / "model-2-of-2.safetensors").write_bytes(bytes(20 * KB))
    (folder / "tokenizer.json").write_bytes(bytes(999 * KB))
    return folder


def made(place: Path, model: Path, **trainer: int) -> tuple[RunDirectory, Room]:
    config = Config.model_validate({"run": {"directory": str(place)}, "model": str(model), "trainer": trainer})
    run = RunDirectory.create(config)
    return run, Room(run, run.config())


def told(run: RunDirectory) -> list[dict]:
    lines = run.events_file.read_text().splitlines() if run.events_file.exists() else []
    return [event for event in map(json.loads, lines) if event["kind"] == "room_short"]


def written(folder: Path, name: str, nbytes: int) -> None:
    (folder / name).mkdir()
    (folder / name / "part").write_bytes(bytes(nbytes))


@pytest.mark.parametrize(("trainer", "needed"), [({}, 2 * 4 * 40 * KB), ({"lora_rank": 4}, 2 * 40 * KB)])
def test_before_the_first_checkpoint_it_is_reckoned_by_the_models_files(
    tmp_path: Path, model: Path, trainer: dict[str, int], needed: int
) -> None:
    """A checkpoint has each parameter three times; that of adapters is small."""
    run, room = made(tmp_path / "run", model, **trainer)
    with small_disk(run.checkpoints, 1000 * KB) as disk:
        disk.fill(leave=needed)
        room.look()
        assert not told(run)
        disk.make_room()
        disk.fill(leave=needed - 4 * KB)
        room.look()
        (event,) = told(run)
        assert (event["free"], event["needed"]) == (needed - 4 * KB, needed)


def test_it_is_said_once_until_there_is_room_again(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, room = made(tmp_path / "run", model)
    with small_disk(run.checkpoints, 1000 * KB) as disk:
        written(run.checkpoints, "step_000001", 100 * KB)
        written(run.weights, "step_9", 10 * KB)
        written(run.weights, "step_10", 50 * KB)
        disk.fill(leave=200 * KB)
        with caplog.at_level(logging.WARNING):
            room.look()
            room.look()
        (event,) = told(run)
        assert (event["free"], event["needed"]) == (200 * KB, 300 * KB)
        (line,) = caplog.messages
        assert f"the disk of {run.path} has {200 * KB:,} bytes left" in line
        assert f"2 more checkpoints with their weights take {300 * KB:,}: make room there" in line
        disk.make_room()
        room.look()
        assert len(told(run)) == 1
        disk.fill()
        room.look()
        assert [event["free"] for event in told(run)] == [200 * KB, 0]
    closing_report(run.path)
    page = (run.path / "report.html").read_text()
    assert "The disk had 0 bytes left, and two more checkpoints with their weights take 307 kB." in page
