"""The read-through cache saves fetching, is never believed, fails no read, and keeps to its limit and folder."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from filmroll.errors import ConfigError, ImageDamagedError, ImageNotFoundError, OutsideStoreError
from filmroll.image import ImageRef
from filmroll.store import cache, open_store
from filmroll.store.shelves.folders import every_file
from tests.store.pictures import noise

PROCESSES = multiprocessing.get_context("fork")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def filled(place: Path, count: int, side: int = 20) -> list[ImageRef]:
    return open_store(place).put_many(noise(side, side, seed=seed) for seed in range(count))


def copy_of(folder: Path, ref: ImageRef) -> Path:
    return folder / "filmroll-cache" / ref.sha256[:2] / f"{ref.sha256}.png"


def copies(folder: Path) -> list[Path]:
    return [path for path in (folder / "filmroll-cache").rglob("*") if not path.is_dir() or path.is_symlink()]


def used(folder: Path) -> int:
    return sum(path.lstat().st_size for path in copies(folder))


def lose(place: Path, ref: ImageRef) -> None:
    store = open_store(place)
    store.shelf.delete(f"{ref.sha256[:2]}/{ref.sha256}.png")


def test_what_one_process_has_read_no_other_fetches(place: Path, folder: Path) -> None:
    (ref,) = filled(place, 1)
    data = open_store(place, cache=folder).read(ref)
    lose(place, ref)
    with pytest.raises(ImageNotFoundError):
        open_store(place).read(ref)
    assert open_store(place, cache=folder).read(ref) == data
    travelled = pickle.loads(pickle.dumps(open_store(place, cache=folder, cache_bytes=1234)))
    assert travelled.read(ref) == data
    assert travelled.cache.max_bytes == 1234


def test_only_reading_fills_it(place: Path, folder: Path) -> None:
    store = open_store(place, cache=folder)
    ref = store.put(noise(9, 9))
    assert not folder.exists()
    store.read(ref)
    assert copies(folder) == [copy_of(folder, ref)]


def test_a_put_asks_the_store_and_not_the_cache(place: Path, folder: Path) -> None:
    store = open_store(place, cache=folder)
    ref = store.put(noise(9, 9))
    store.read(ref)
    lose(place, ref)
    open_store(place, cache=folder).put(noise(9, 9))
    assert open_store(place).read(ref)


def spoil(path: Path, damage: str) -> None:
    good = path.read_bytes()
    flipped = good[:50] + bytes([good[50] ^ 1]) + good[51:]
    path.unlink()
    if damage == "link":
        elsewhere = path.parents[2] / "elsewhere"
        elsewhere.write_bytes(good)
        path.symlink_to(elsewhere)
    elif damage == "fifo":
        os.mkfifo(path)
    elif damage == "folder":
        (path / "inner").mkdir(parents=True)
    else:
        path.write_bytes({"flip": flipped, "short": good[:-1], "long": good + b"x", "empty": b""}[damage])


@pytest.mark.parametrize("damage", ["flip", "short", "long", "empty", "link", "fifo", "folder"])
def test_a_damaged_copy_is_never_given_out_and_fetched_again(place: Path, folder: Path, damage: str) -> None:
    (ref,) = filled(place, 1)
    store = open_store(place, cache=folder)
    data = store.read(ref)
    spoil(copy_of(folder, ref), damage)
    assert open_store(place, cache=folder).read(ref) == data
    if damage == "folder":
        return  # Nothing of ours; it stays, and the image is fetched each time.
    assert copy_of(folder, ref).read_bytes() == data
    assert not copy_of(folder, ref).is_symlink()
    spoil(copy_of(folder, ref), damage)
    lose(place, ref)
    with pytest.raises(ImageNotFoundError):
        open_store(place, cache=folder).read(ref)


def test_a_copy_makes_no_wrong_reference_right(place: Path, folder: Path) -> None:
    (ref,) = filled(place, 1)
    store = open_store(place, cache=folder)
    store.read(ref)
    change = msgspec.structs.replace
    for forged, kind in (
        (change(ref, nbytes=ref.nbytes + 1), ImageDamagedError),
        (change(ref, nbytes=ref.nbytes - 1), ImageDamagedError),
        (change(ref, uri=ref.uri + "x"), OutsideStoreError),
        (change(ref, sha256="../" * 21 + "x", uri="../x"), OutsideStoreError),
    ):
        with pytest.raises(kind):
            store.read(forged)
    assert store.read(ref)


def test_it_never_holds_more_than_its_limit(place: Path, folder: Path) -> None:
    refs = filled(place, 40)
    limit = sum(ref.nbytes for ref in refs[:10])
    store = open_store(place, cache=folder, cache_bytes=limit)
    chance = random.Random(1)
    for _ in range(120):
        assert store.read(chance.choice(refs))
        assert used(folder) <= limit
    assert used(folder) > limit // 2


def test_what_was_read_longest_ago_gives_way(place: Path, folder: Path) -> None:
    refs = filled(place, 30)
    limit = sum(ref.nbytes for ref in refs[:10])
    store = open_store(place, cache=folder, cache_bytes=limit)
    store.read(refs[0])
    for ref in refs[1:]:
        store.read(refs[0])
        store.read(ref)
    assert copy_of(folder, refs[0]).exists()
    assert copy_of(folder, refs[-1]).exists()
    assert not copy_of(folder, refs[1]).exists()


def test_an_image_larger_than_the_limit_is_read_and_not_kept(place: Path, folder: Path) -> None:
    small, large = filled(place, 1), filled(place, 1, side=60)
    store = open_store(place, cache=folder, cache_bytes=2 * small[0].nbytes)
    assert store.read(small[0])
    assert store.read(large[0])
    assert copies(folder) == [copy_of(folder, small[0])]


def test_drafts_of_killed_processes_give_way_too(place: Path, folder: Path) -> None:
    refs = filled(place, 12)
    limit = sum(ref.nbytes for ref in refs[:10])
    shard = folder / "filmroll-cache" / "ab"
    shard.mkdir(parents=True)
    draft = shard / ".0123456789abcdef"
    draft.write_bytes(bytes(limit))
    os.utime(draft, (0, 0))
    store = open_store(place, cache=folder, cache_bytes=limit)
    for ref in refs:
        store.read(ref)
    assert not draft.exists()
    assert used(folder) <= limit


def test_nothing_beside_its_own_folder_is_removed(place: Path, folder: Path) -> None:
    """Not even if somebody names the store's own folder, or his home, as the cache."""
    refs = filled(place, 20)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    (tmp := place / "notes").write_text("mine")
    store = open_store(place, cache=place, cache_bytes=3 * refs[0].nbytes)
    for ref in refs:
        store.read(ref)
    assert tmp.read_text() == "mine"
    assert all(path.read_bytes() == data for path, data in before.items())


def test_no_link_in_it_is_followed(place: Path, folder: Path, tmp_path: Path) -> None:
    (ref,) = filled(place, 1)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / f"{ref.sha256}.png").write_bytes(b"not ours")
    os.utime(outside / f"{ref.sha256}.png", (0, 0))
    (folder / "filmroll-cache").mkdir(parents=True)
    (folder / "filmroll-cache" / ref.sha256[:2]).symlink_to(outside)
    store = open_store(place, cache=folder, cache_bytes=ref.nbytes)
    for _ in range(3):
        assert store.read(ref) == open_store(place).read(ref)
    assert [path.name for path in outside.iterdir()] == [f"{ref.sha256}.png"]
    assert (outside / f"{ref.sha256}.png").read_bytes() == b"not ours"


def test_no_link_that_appears_meanwhile_is_followed(
    place: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = filled(place, 2)
    store = open_store(place, cache=folder, cache_bytes=first.nbytes)
    store.read(first)
    shard = copy_of(folder, first).parent
    (outside := tmp_path / "outside").mkdir()
    (outside / f"{first.sha256}.png").write_bytes(b"not ours")

    def listed_then_swapped(fd: int, path: str) -> list[Any]:
        files = list(every_file(fd, path))
        shard.rename(tmp_path / "away")
        shard.symlink_to(outside)
        return files

    monkeypatch.setattr(cache, "every_file", listed_then_swapped)
    assert store.read(second) == open_store(place).read(second)
    assert (outside / f"{first.sha256}.png").read_bytes() == b"not ours"


@pytest.mark.parametrize("call", ["open", "fstat", "read", "mkdir", "replace", "utime", "unlink", "listdir"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EMFILE])
def test_a_failing_disk_fails_no_read(folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    """The store is in memory, so that only the cache's calls fail."""
    store = open_store("memory://failing-disk", cache=folder, cache_bytes=3000)
    refs = [store.put(noise(20, 20, seed=seed)) for seed in range(4)]
    expected = [store.read(ref) for ref in refs]
    failures = 0

    def fail(*args: Any, **kwargs: Any) -> None:
        nonlocal failures
        failures += 1
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        # What was read last is there, what comes after it is not.
        assert [store.read(ref) for ref in reversed(refs)] == expected[::-1]
    assert failures
    assert [path for path in copies(folder) if path.name.startswith(".")] == []
    assert [store.read(ref) for ref in refs] == expected
    assert used(folder) <= 3000


def test_a_cache_that_cannot_be_is_none(place: Path, tmp_path: Path) -> None:
    (ref,) = filled(place, 1)
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "further")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "nowhere", "/proc/none"):
        assert open_store(place, cache=folder).read(ref)
    for nothing in ("", "a\0b"):
        with pytest.raises(ConfigError):
            open_store(place, cache=nothing)


def _read_all(place: Path, folder: Path, limit: int, refs: list[ImageRef], seed: int) -> None:
    store = open_store(place, cache=folder, cache_bytes=limit)
    plain = open_store(place)
    chance = random.Random(seed)
    for _ in range(60):
        ref = chance.choice(refs)
        assert store.read(ref) == plain.read(ref)
        # A file may go between being listed and being asked for its size.
        total = 0
        for path in copies(folder):
            try:
                total += path.lstat().st_size
            except FileNotFoundError:
                continue
        assert total <= limit


def test_processes_share_the_folder_and_its_limit(place: Path, folder: Path) -> None:
    refs = filled(place, 40)
    limit = sum(ref.nbytes for ref in refs[:24])
    readers = [PROCESSES.Process(target=_read_all, args=(place, folder, limit, refs, seed)) for seed in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [reader.exitcode for reader in readers] == [0] * 4
    assert used(folder) > limit // 2


def test_threads_read_right_while_copies_come_and_go(place: Path, folder: Path) -> None:
    refs = filled(place, 20)
    store = open_store(place, cache=folder, cache_bytes=4 * refs[0].nbytes)
    expected = {ref.sha256: open_store(place).read(ref) for ref in refs}
    wanted = random.Random(2).choices(refs, k=400)
    with ThreadPoolExecutor(8) as pool:
        for ref, data in zip(wanted, pool.map(store.read, wanted), strict=True):
            assert data == expected[ref.sha256]


def test_a_uri_alone_is_enough_and_goes_through_the_cache(place: Path, folder: Path) -> None:
    (ref,) = filled(place, 1)
    store = open_store(place, cache=folder)
    data = store.read_at(ref.uri)
    assert copy_of(folder, ref).read_bytes() == data
    lose(place, ref)
    assert store.read_at(ref.uri) == data
    copy_of(folder, ref).unlink()
    with pytest.raises(ImageNotFoundError):
        store.read_at(ref.uri)
    for outside in (ref.uri.replace(ref.sha256[:2] + "/", "trash/"), place.as_uri(), "s3://bucket/x.png"):
        with pytest.raises(OutsideStoreError):
            store.read_at(outside)
