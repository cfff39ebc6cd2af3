"""Weights written by a trainer are read back as they were, or refused before a tensor is loaded."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from filmroll.engine.weights import (
    FILE,
    INDEX,
    MANIFEST,
    read_weights,
    version_folder,
    write_in_turn,
    write_weights,
)
from filmroll.errors import WeightsError


def tensors() -> dict[str, torch.Tensor]:
    embedding = torch.arange(12.0).reshape(4, 3)
    return {
        "embed": embedding,
        "head": embedding,
        "bias": torch.ones(3, dtype=torch.bfloat16),
        "one": torch.tensor(2.0),
    }


SHAPES = {name: tuple(value.shape) for name, value in tensors().items()}


def manifest_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / MANIFEST).read_text())


def change_manifest(place: Path, **values: object) -> None:
    (place / MANIFEST).write_text(json.dumps(manifest_of(place) | values))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_weights(tensors(), tmp_path, 3)
    loaded = read_weights(tmp_path, 3, SHAPES)
    assert loaded.keys() == SHAPES.keys()
    for name, value in tensors().items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value)


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    place = write_weights(tensors(), tmp_path, 0)
    assert manifest_of(place)["tied"] == {"head": "embed"}
    loaded = read_weights(tmp_path, 0, SHAPES)
    assert loaded["head"].data_ptr() == loaded["embed"].data_ptr()


def test_views_of_one_memory_are_written_apart(tmp_path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    parts = {"whole": whole, "row": whole[0], "turned": whole.T}
    write_weights(parts, tmp_path, 1)
    loaded = read_weights(tmp_path, 1, {name: tuple(value.shape) for name, value in parts.items()})
    assert all(torch.equal(loaded[name], value) for name, value in parts.items())


def test_a_version_written_again_replaces_the_one_before(tmp_path: Path) -> None:
    write_weights(tensors(), tmp_path, 1)
    write_weights(tensors() | {"one": torch.tensor(5.0)}, tmp_path, 1)
    assert read_weights(tmp_path, 1, SHAPES)["one"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("filmroll.durable._put_in_place", full)
    with pytest.raises(OSError, match="no space"):
        write_weights(tensors(), tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def refused(folder: Path, version: int = 1, expected: dict[str, tuple[int, ...]] = SHAPES) -> str:
    with pytest.raises(WeightsError) as caught:
        read_weights(folder, version, expected)
    assert str(folder) not in json.dumps(caught.value.wire())
    return caught.value.problem


def test_every_difference_is_refused(tmp_path: Path) -> None:
    place = write_weights(tensors(), tmp_path, 1)
    assert "no weights of version 2" in refused(tmp_path, 2)
    assert "lack 'new'" in refused(tmp_path, expected=SHAPES | {"new": (1,)})
    assert "too many, first 'bias'" in refused(tmp_path, expected={k: v for k, v in SHAPES.items() if k != "bias"})
    assert "has the shape [4, 3]" in refused(tmp_path, expected=SHAPES | {"head": (3, 4)})
    place.rename(version_folder(tmp_path, 4))
    assert "says version 1" in refused(tmp_path, 4)


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    file = write_weights(tensors(), tmp_path, 1) / FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "does not have the hash" in refused(tmp_path)


def test_a_file_cut_short_or_gone_is_refused(tmp_path: Path) -> None:
    file = write_weights(tensors(), tmp_path, 1) / FILE
    file.write_bytes(file.read_bytes()[:-3])
    assert "does not have the hash" in refused(tmp_path)
    file.unlink()
    assert "cannot be read" in refused(tmp_path)


def test_a_file_that_is_not_what_the_manifest_lists_is_refused(tmp_path: Path) -> None:
    place = write_weights(tensors(), tmp_path, 1)
    other = write_weights({"embed": torch.zeros(1)}, tmp_path, 2)
    (place / FILE).write_bytes((other / FILE).read_bytes())
    change_manifest(place, files=manifest_of(other)["files"])
    assert "do not hold what its manifest lists" in refused(tmp_path)


def test_what_one_file_does_not_hold_is_in_several(tmp_path: Path) -> None:
    place = write_weights(tensors(), tmp_path, 3, shard_bytes=50)
    names = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    assert sorted(path.name for path in place.iterdir()) == sorted([*names, INDEX, MANIFEST])
    index = json.loads((place / INDEX).read_text())
    assert index["weight_map"] == {"embed": names[0], "bias": names[1], "one": names[1]}
    loaded = read_weights(tmp_path, 3, SHAPES)
    assert loaded.keys() == SHAPES.keys()
    assert all(torch.equal(loaded[name], value) for name, value in tensors().items())


def test_each_of_several_files_is_checked(tmp_path: Path) -> None:
    place = write_weights(tensors(), tmp_path, 1, shard_bytes=1)
    for file in place.glob("*.safetensors"):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert f"{file.name} of version 1 does not have the hash" in refused(tmp_path)
        file.write_bytes(whole)
    read_weights(tmp_path, 1, SHAPES)


def test_no_more_is_held_than_a_file_takes(tmp_path: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def one_after_the_other() -> Iterator[tuple[str, torch.Tensor]]:
        for number in range(12):
            value = torch.full((10,), float(number))
            alive.append(weakref.ref(value))
            yield str(number), value
            del value
            assert sum(one() is not None for one in alive) <= 4

    write_in_turn(one_after_the_other(), tmp_path, 1, tied={}, shard_bytes=120)
    assert len(read_weights(tmp_path, 1, {str(number): (10,) for number in range(12)})) == 12


@pytest.mark.parametrize("name", ["../model.safetensors", "other.safetensors", "model.safetensors\n"])
def test_a_manifest_names_no_other_files(tmp_path: Path, name: str) -> None:
    place = write_weights(tensors(), tmp_path, 1)
    change_manifest(place, files={name: "0" * 64})
    assert "manifest of version 1 cannot be read" in refused(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "[" * 100_000])
def test_a_broken_manifest_is_refused(tmp_path: Path, text: str) -> None:
    place = write_weights(tensors(), tmp_path, 1)
    (place / MANIFEST).write_text(text)
    assert "cannot be read" in refused(tmp_path)


def test_a_tie_to_nothing_is_refused(tmp_path: Path) -> None:
    place = write_weights(tensors(), tmp_path, 1)
    change_manifest(place, tied={"head": "elsewhere"})
    assert "no tensor of this version" in refused(tmp_path)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    place = write_weights(tensors(), tmp_path, 1)
    (place / FILE).write_bytes(b"x" * 100)
    import hashlib

    change_manifest(place, files={FILE: hashlib.sha256(b"x" * 100).hexdigest()})
    assert "cannot be read" in refused(tmp_path)


def test_safetensors_itself_can_read_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "check.safetensors", metadata={"format": "pt"})
    place = write_weights({"a": torch.ones(1)}, tmp_path, 1)
    assert (place / FILE).read_bytes() == (tmp_path / "check.safetensors").read_bytes()
