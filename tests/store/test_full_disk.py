"""A store whose disk is full: what was acknowledged is there, nothing else is, and with room it goes on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from filmroll.errors import DiskFullError, StoreFullError
from filmroll.image import ImageRef
from filmroll.store import Manifest, Store, open_store
from filmroll.store.upkeep.archive import export_archive
from tests.disks import Disk, files_no_longer_than, small_disk
from tests.store.pictures import noise


def put_until_full(store: Store) -> tuple[list[ImageRef], StoreFullError]:
    put = []
    for seed in range(1000):
        try:
            put.append(store.put(noise(40, 40, seed=seed)))
        except StoreFullError as error:
            return put, error
    raise AssertionError("it never was full")


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "ballast")


def check_whole(store: Store, put: list[ImageRef], disk: Disk) -> None:
    assert len(files(disk.folder)) == len(put)
    for ref in put:
        assert hashlib.sha256(store.read(ref)).hexdigest() == ref.sha256


def test_what_was_put_is_there_and_nothing_else(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256 << 10) as disk:
        store = open_store(disk.folder)
        put, error = put_until_full(store)
        assert len(put) > 10
        assert isinstance(error, DiskFullError)
        assert (error.code, error.status, error.remedy) == ("store_full", 507, "Make room there")
        assert "No space left on device" in error.wire()["message"]
        assert str(tmp_path) not in str(error.wire())
        assert "bytes are free" in str(error)
        check_whole(store, put, disk)
        # What is known already needs no room.
        assert store.put(noise(40, 40, seed=3)) == put[3]
        assert open_store(disk.folder).put(noise(40, 40, seed=4)) == put[4]
        (disk.folder / put[0].uri.removeprefix(f"{disk.folder.as_uri()}/")).unlink()
        again = store.put(noise(40, 40, seed=len(put)))
        check_whole(store, [*put[1:], again], disk)


def test_of_many_put_together_the_first_without_room_is_named(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 128 << 10) as disk:
        store = open_store(disk.folder)
        with pytest.raises(StoreFullError, match=r"^image \d+: the store cannot keep the image: No space left"):
            store.put_many(noise(40, 40, seed=seed) for seed in range(64))
        for path in files(disk.folder):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem


def test_a_manifest_and_an_archive_find_room_or_are_not_there(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256 << 10) as disk:
        store = open_store(disk.folder / "store")
        refs = [store.put(noise(40, 40, seed=seed)) for seed in range(8)]
        manifest = Manifest(store, "run")
        manifest.keep("one", refs)
        disk.fill()
        there = files(disk.folder)
        with pytest.raises(StoreFullError):
            manifest.keep("two", refs)
        with pytest.raises(DiskFullError, match="no room for the archive: No space left"):
            export_archive(manifest, disk.folder / "run.tar")
        assert manifest.labels() == ["one"]
        assert files(disk.folder) == there
        disk.make_room()
        manifest.keep("two", refs)
        assert export_archive(manifest, disk.folder / "run.tar").images == 8


def test_a_file_that_may_not_grow_is_the_same(tmp_path: Path) -> None:
    """Where no disk can be mounted."""
    store = open_store(tmp_path)
    small = store.put(noise(5, 5))
    with files_no_longer_than(1000), pytest.raises(StoreFullError, match="File too large"):
        store.put(noise(40, 40))
    assert [path.stem for path in files(tmp_path)] == [small.sha256]
    assert store.read(store.put(noise(40, 40)))
