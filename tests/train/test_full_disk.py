"""Checkpoints and weights on a disk that is full: what bears a name is whole, and the trainer goes on."""

import json
from pathlib import Path

import pytest
import torch

from filmroll.engine.weights import check_weights, version_folder, write_weights
from filmroll.errors import DiskFullError
from filmroll.train.learning.ranks import Ranks
from filmroll.train.process import checkpoint
from filmroll.train.step import Progress
from tests.disks import small_disk
from tests.train.test_ranks import Together
from tests.train.together import team_of

MB = 1 << 20


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("left", [0, 8 * 1024, 3 * MB])
def test_a_checkpoint_finds_room_or_is_not_there(tiny_model, tmp_path, left):
    """The one before stays, and so do the trainer's numbers: with room they are saved, and come back."""
    told = {"place": str(tmp_path), "model": str(tiny_model), "store": str(tmp_path / "images")}
    with small_disk(tmp_path / "checkpoints", 64 * MB) as disk:
        team = team_of(told, Ranks())
        team.save(Progress(0, 1))
        disk.fill(leave=left)
        with pytest.raises(DiskFullError, match=r"checkpoint.*No space left") as caught:
            team.save(Progress(0, 2))
        assert str(tmp_path) not in str(caught.value.wire())
        assert names(disk.folder) == ["ballast", "step_000001"]
        assert checkpoint.newest(disk.folder).name == "step_000001"
        assert team.restore() == Progress(0, 1)
        disk.make_room()
        team.save(Progress(0, 2))
        assert names(disk.folder) == ["step_000001", "step_000002"]
        assert team.restore() == Progress(0, 2)


@pytest.mark.parametrize("left", [0, 8 * 1024, 3 * MB])
def test_weights_find_room_or_are_not_there(tiny_model, tmp_path, left):
    told = {"place": str(tmp_path), "model": str(tiny_model), "store": str(tmp_path / "images")}
    with small_disk(tmp_path / "weights", 64 * MB) as disk:
        team = team_of(told, Ranks())
        team.publish(1)
        disk.fill(leave=left)
        for version in (2, 1):
            # An older one that would be replaced stays as it is.
            with pytest.raises(DiskFullError, match=f"weights/step_{version}: No space left"):
                team.publish(version)
        assert names(disk.folder) == ["ballast", "step_1"]
        disk.make_room()
        team.publish(2)
        shapes = {name: tuple(value.shape) for name, value in team._trainer.model.state_dict().items()}
        for version in (1, 2):
            check_weights(disk.folder, version, shapes)


def test_a_disk_too_full_for_an_index_or_a_manifest_makes_no_version(tmp_path):
    """Wherever it is full in the middle of several files, there is no folder of that name."""
    tensors = {f"t{number}": torch.zeros(3000) for number in range(4)}
    with small_disk(tmp_path / "weights", 256 * 1024) as disk:
        found = []
        for left in range(0, 96 * 1024, 4096):
            disk.fill(leave=left)
            try:
                write_weights(tensors, disk.folder, 1, shard_bytes=12_000)
                check_weights(disk.folder, 1, dict.fromkeys(tensors, (3000,)))
                found.append("whole")
                break
            except DiskFullError:
                assert names(disk.folder) == ["ballast"]
                found.append("full")
            disk.make_room()
    assert found.count("full") > 10
    assert found[-1] == "whole"


def test_two_ranks_are_told_and_go_on(tiny_model, tmp_path):
    """Each writes its own part; that neither found room is one error, after which both are in step."""
    place = tmp_path / "two"
    place.mkdir()
    do = [["step", 0], ["save", 1], ["step", 1], ["publish", 1]]
    with small_disk(place / "checkpoints", 4 * MB) as disk:
        together = Together(place, tiny_model, tmp_path / "images", do)
        try:
            first, failed, second, _ = together.answers()
        finally:
            together.end()
        assert failed["error"] == "DiskFullError"
        assert not failed["out_of_step"]
        assert "checkpoint step_000002" in failed["text"]
        assert "No space left on device" in failed["text"]
        assert first["loss"] != second["loss"]
        assert names(disk.folder) == []
    assert json.loads((version_folder(place / "weights", 1) / "manifest.json").read_text())["version"] == 1
