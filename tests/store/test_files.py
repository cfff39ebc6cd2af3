"""The store in a folder: layout, repeated writes, order of fsyncs, many processes, kills, failing disks."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from filmroll.errors import ConfigError, ImageDamagedError, StoreError, StoreUnavailableError
from filmroll.image import ImageRef
from filmroll.store import open_store
from tests.store.pictures import noise

PROCESSES = multiprocessing.get_context("fork")


def objects(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and path.parent.name != "tmp")


def check_whole(root: Path) -> int:
    """How many objects there are; every one is named by its own digest and lies in its own folder."""
    found = objects(root)
    for path in found:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
        assert path.parent == root / path.stem[:2]
    return len(found)


def location(root: Path, ref: ImageRef) -> Path:
    return root / ref.sha256[:2] / f"{ref.sha256}.png"


def test_an_object_lies_where_its_uri_says(tmp_path: Path) -> None:
    root = tmp_path / "a b" / "100% é"
    ref = open_store(root).put(noise(5, 5))
    assert objects(root) == [location(root, ref)]
    assert ref.uri == location(root, ref).as_uri()
    assert ref.uri.isascii()
    assert list((root / "tmp").iterdir()) == []


def test_open_store_takes_paths_and_file_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "my store"
    ref = open_store(place).put(noise(5, 5))
    for url in (str(place), place.as_uri(), "~/my store", "my store", "other/../my store", f"{place}/"):
        assert open_store(url).read(ref)
    for url in ("ftp://host/x", "http://host/x", "file://host/x", "file:x", "", "memory:"):
        with pytest.raises(ConfigError) as caught:
            open_store(url)
        assert str(tmp_path) not in str(caught.value.wire())


def test_a_known_image_is_not_written_or_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    ref = store.put(noise(5, 5))
    data, opened = store.read(ref), os.open

    def open_folders_alone(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        return opened(path, flags | os.O_DIRECTORY, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", open_folders_alone)
    assert store.put(data) == ref


def test_a_known_image_is_not_looked_for_outside(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    ref = store.put(noise(5, 5))
    data, shard = store.read(ref), location(tmp_path / "store", ref).parent
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ImageDamagedError):
        store.put(data)


def test_a_removed_image_is_written_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    ref = store.put(noise(5, 5))
    location(tmp_path, ref).unlink()
    assert store.read(store.put(noise(5, 5)))


@pytest.mark.parametrize("folder", ["", "tmp", "??"])
def test_a_removed_folder_is_made_again(tmp_path: Path, folder: str) -> None:
    store = open_store(tmp_path / "store")
    ref = store.put(noise(5, 5))
    shutil.rmtree(next((tmp_path / "store").glob(folder)) if folder else store.shelf.root)
    assert store.put(noise(5, 5)) == ref
    assert store.read(store.put(noise(5, 5, seed=1)))
    assert store.read(ref)


@pytest.mark.parametrize("damage", ["flip", "short", "long", "empty", "symlink", "fifo"])
def test_a_damaged_object_is_found_by_readers_and_mended_by_the_next_writer(tmp_path: Path, damage: str) -> None:
    ref = open_store(tmp_path).put(noise(5, 5))
    path = location(tmp_path, ref)
    good = path.read_bytes()
    path.unlink()
    if damage == "symlink":
        (tmp_path / "elsewhere").write_bytes(good)
        path.symlink_to(tmp_path / "elsewhere")
    elif damage == "fifo":
        os.mkfifo(path)
    else:
        flipped = good[:50] + bytes([good[50] ^ 1]) + good[51:]
        path.write_bytes({"flip": flipped, "short": good[:-1], "long": good + b"x", "empty": b""}[damage])

    with pytest.raises(ImageDamagedError):
        open_store(tmp_path).read(ref)
    assert open_store(tmp_path).put(noise(5, 5)) == ref
    assert open_store(tmp_path).read(ref) == good
    assert path.is_file()
    assert not path.is_symlink()


@pytest.mark.parametrize("finder", ["reader", "writer"])
def test_damage_is_kept_for_whoever_wants_to_know_how_it_came_about(tmp_path: Path, finder: str) -> None:
    ref = open_store(tmp_path).put(noise(5, 5))
    path = location(tmp_path, ref)
    path.write_bytes(b"damage")
    if finder == "writer":
        open_store(tmp_path).put(noise(5, 5))
    else:
        with pytest.raises(ImageDamagedError, match="it was set aside"):
            open_store(tmp_path).read(ref)
        assert not path.exists()
    (aside,) = (tmp_path / "quarantine").iterdir()
    assert aside.name.startswith(f"{path.name}.")
    assert aside.read_bytes() == b"damage"


def test_an_image_that_is_mended_while_it_is_set_aside_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    ref = store.put(noise(5, 5))
    good = store.read(ref)
    location(tmp_path, ref).write_bytes(b"damage")
    move = store.shelf.move

    def mended_before(key: str, to: str) -> Any:
        open_store(tmp_path).put(noise(5, 5))
        return move(key, to)

    monkeypatch.setattr(store.shelf, "move", mended_before)
    assert store.read(ref) == good
    assert location(tmp_path, ref).read_bytes() == good
    assert [aside.read_bytes() for aside in (tmp_path / "quarantine").iterdir()] == [b"damage"]


@pytest.mark.parametrize("more", [-1, 1])
def test_a_false_claim_about_an_image_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int) -> None:
    store = open_store(tmp_path)
    ref = store.put(noise(5, 5))
    monkeypatch.setattr(store.shelf, "move", None)
    with pytest.raises(ImageDamagedError):
        store.read(msgspec.structs.replace(ref, nbytes=ref.nbytes + more))
    assert store.read(ref)


def test_every_single_changed_byte_is_found(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    ref = store.put(noise(3, 3))
    path = location(tmp_path, ref)
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x40]) + good[place + 1 :])
        with pytest.raises(ImageDamagedError):
            store.read(ref)


def record_calls(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[str]:
    """The names of what is synced, linked and unlinked, in order."""
    calls: list[str] = []
    real_fsync, real_link, real_unlink = os.fsync, os.link, os.unlink

    def name(inode: int) -> str:
        for path in (root, *root.parents, *root.rglob("*")):
            if path.exists() and path.stat().st_ino == inode:
                inside = path != root and root in path.parents
                if not inside:
                    return "root" if path == root else "above"
                return {2: "shard", 3: "tmp"}.get(len(path.name), "file")
        return "?"

    def fsync(fd: int) -> None:
        calls.append(f"fsync {name(os.fstat(fd).st_ino)}")
        real_fsync(fd)

    def link(*args: Any, **kwargs: Any) -> None:
        calls.append("link")
        real_link(*args, **kwargs)

    def unlink(*args: Any, **kwargs: Any) -> None:
        calls.append("unlink")
        real_unlink(*args, **kwargs)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "unlink", unlink)
    return calls


def test_everything_is_on_disk_before_put_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "one" / "two"
    calls = record_calls(monkeypatch, root)
    open_store(root).put(noise(5, 5))
    above, rest = calls[: calls.index("fsync root")], calls[calls.index("fsync root") :]
    assert above == ["fsync above"] * len(root.parents)
    assert rest == ["fsync root", "fsync root", "fsync file", "link", "unlink", "fsync shard"]


def test_a_hit_on_another_writers_object_is_on_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "store"
    open_store(root).put(noise(5, 5))
    calls = record_calls(monkeypatch, root)
    second = open_store(root)
    second.put(noise(5, 5))
    second.put(noise(5, 5))
    assert calls == ["fsync shard"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_without_hard_links_the_file_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def no_links(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, "no links")

    monkeypatch.setattr(os, "link", no_links)
    ref = open_store(tmp_path).put(noise(5, 5))
    assert open_store(tmp_path).read(ref)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_disk_that_writes_less_than_it_says_makes_no_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda fd, data: len(data))
    with pytest.raises(StoreUnavailableError):
        open_store(tmp_path).put(noise(5, 5))
    assert objects(tmp_path) == []


def test_a_server_that_refuses_at_the_end_what_was_written_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: set[int] = set()
    write, close = os.write, os.close

    def closed(fd: int) -> None:
        close(fd)
        if fd in written:
            raise OSError(errno.EDQUOT, "over quota")

    monkeypatch.setattr(os, "write", lambda fd, data: written.add(fd) or write(fd, data))
    monkeypatch.setattr(os, "close", closed)
    with pytest.raises(StoreUnavailableError):
        open_store(tmp_path).put(noise(5, 5))
    assert objects(tmp_path) == []


def test_an_old_image_of_another_user_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_yours(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EPERM, "not yours")

    store = open_store(tmp_path)
    ref = store.put(noise(5, 5))
    for again in (store, open_store(tmp_path)):
        os.utime(location(tmp_path, ref), (0, 0))
        with monkeypatch.context() as patched:
            patched.setattr(os, "utime", not_yours)
            assert again.put(noise(5, 5)) == ref
        assert time.time() - location(tmp_path, ref).stat().st_mtime < 60
    assert store.read(ref)


def test_a_folder_in_place_of_an_object_is_an_error(tmp_path: Path) -> None:
    ref = open_store(tmp_path).put(noise(5, 5))
    location(tmp_path, ref).unlink()
    location(tmp_path, ref).mkdir()
    with pytest.raises(StoreError):
        open_store(tmp_path).put(noise(5, 5))


@contextmanager
def signalled(handler: Callable[..., None]) -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_signals_do_not_disturb(tmp_path: Path) -> None:
    store, ended, main = open_store(tmp_path), threading.Event(), threading.get_ident()
    arrived: list[int] = []

    def send() -> None:
        while not ended.wait(0.0005):
            signal.pthread_kill(main, signal.SIGUSR1)

    sender = threading.Thread(target=send)
    with signalled(lambda number, _: arrived.append(number)):
        sender.start()
        try:
            while len(arrived) < 100:
                assert open_store(tmp_path).read(store.put(noise(40, 40, seed=len(arrived))))
        finally:
            ended.set()
            sender.join()


def test_an_interrupted_put_leaves_nothing_half_done(tmp_path: Path) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    store, chance, main, interrupted = open_store(tmp_path), random.Random(1), threading.get_ident(), 0
    with signalled(interrupt):
        for seed in range(80):
            sender = threading.Timer(chance.random() * 0.01, signal.pthread_kill, (main, signal.SIGUSR1))
            try:
                sender.start()
                store.put(noise(40, 40, seed=seed))
                sender.join()
                time.sleep(0.001)
            except KeyboardInterrupt:
                interrupted += 1
            sender.join()
            check_whole(tmp_path)
            assert open_store(tmp_path).read(store.put(noise(40, 40, seed=seed)))
    assert interrupted == 80


def _put_all(root: Path, seeds: list[int]) -> None:
    store = open_store(root)
    for seed in seeds:
        store.read(store.put(noise(40, 40, seed=seed)))


def test_processes_that_put_the_same_and_different_images_make_one_object_each(tmp_path: Path) -> None:
    root = tmp_path / "store"
    seeds = list(range(20))
    writers = [
        PROCESSES.Process(target=_put_all, args=(root, [*random.Random(number).sample(seeds, 20), 100 + number]))
        for number in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert check_whole(root) == 24
    assert list((root / "tmp").iterdir()) == []


def _put_forever(root: Path, first: int) -> None:
    store = open_store(root)
    for seed in range(first, first + 1_000_000):
        store.put(noise(100, 100, seed=seed))


def test_killed_writers_leave_no_torn_or_misnamed_object(tmp_path: Path) -> None:
    root = tmp_path / "store"
    chance = random.Random(1)
    for number in range(30):
        writer = PROCESSES.Process(target=_put_forever, args=(root, number * 1000))
        before = len(objects(root))
        writer.start()
        # However busy the machine: it is at work, and killed at a random moment of it.
        while len(objects(root)) == before:
            assert writer.is_alive()
            time.sleep(0.001)
        time.sleep(chance.random() * 0.03)
        writer.kill()
        writer.join()
        assert writer.exitcode == -9
        assert check_whole(root) > before
    store = open_store(root)
    assert store.read(store.put(noise(100, 100, seed=0)))
