"""Law 8 at length: thousands of hostile references, and a neighbour who swaps links while images are read."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import string
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.synchronize import Event
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from filmroll.errors import FilmrollError, OutsideStoreError, StoreError
from filmroll.image import ImageRef
from filmroll.store import open_store
from filmroll.store.ingest.canonical import canonical
from tests.store.conftest import Show
from tests.store.effort import effort
from tests.store.pictures import noise

LONGEST = 1.0
"""Seconds that a call may take, without those in which the machine did not let it run."""


class Watched:
    """The calling thread's opens: how many, and which of them led to one of the forbidden files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, outside: Path) -> None:
        self._forbidden = {(state.st_dev, state.st_ino) for state in map(os.stat, (outside, *outside.rglob("*")))}
        self._thread = threading.get_ident()
        self._open, self.opens, self.outside = os.open, 0, 0
        monkeypatch.setattr(os, "open", self._spy)

    def _spy(self, *args: Any, **kwargs: Any) -> int:
        fd = self._open(*args, **kwargs)
        if threading.get_ident() == self._thread:
            state = os.fstat(fd)
            self.opens += 1
            self.outside += (state.st_dev, state.st_ino) in self._forbidden
        return fd


class Slowest:
    """The longest of all calls; a thread that waits for a processor is not the code's to answer for."""

    seconds = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        start, waited = time.monotonic(), _waited()
        yield
        self.seconds = max(self.seconds, time.monotonic() - start - (_waited() - waited))


def _waited() -> float:
    with suppress(OSError):
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return 0.0


@pytest.fixture
def ref(tmp_path: Path) -> ImageRef:
    """An image in a store, and the very same file in a folder above the store's."""
    store = open_store(tmp_path / "in" / "store")
    one = store.put(noise(9, 9))
    outside = tmp_path / "outside"
    shutil.copytree(tmp_path / "in" / "store" / one.sha256[:2], outside / one.sha256[:2])
    shutil.copy(outside / one.sha256[:2] / f"{one.sha256}.png", outside)
    (outside / "passwd").write_text("secret")
    return one


# Hostile references

STRANGE = ["", ".", "..", "../", "/", "//", "\\", "\0", "\n", "%00", "%2e%2e%2f", "%", "~", "$HOME", "*"]
STRANGE += ["\u00e9", "\ud800", "\U0001d7d8", "\u202e"]
SCHEMES = ["file:", "FILE:", "file://localhost", "file:////", "http://", "https://", "ftp://", "s3://", "data:", ""]
TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif", "text/html", "", "../png", "image/png\0", "IMAGE/PNG"]


def hostile(random: Random, ref: ImageRef, root: Path) -> ImageRef:
    """A reference that names another place than the image's, or the image by what is no digest."""
    digest = random.choice([ref.sha256, ref.sha256, _digest(random, ref.sha256)])
    paths = [
        lambda: f"{root}/{digest[:2]}/{digest}.png",
        lambda: f"{root}/{digest[:2]}/{_spoiled(random, digest)}.png",
        lambda: f"{root}/{_spoiled(random, digest[:2])}/{digest}.png",
        lambda: f"{root}/../../outside/{digest[:2]}/{digest}.png",
        lambda: f"{root.parent.parent}/outside/{digest}.png",
        lambda: f"{root}/{random.choice(['tmp', 'trash', 'quarantine', 'manifests', 'leases'])}/{digest}.png",
        lambda: _spoiled(random, str(root / digest[:2] / f"{digest}.png")),
        lambda: random.choice(["/etc/passwd", "/dev/zero", "/proc/self/mem", "passwd", "", "C:\\a.png", "/" * 5000]),
    ]
    path = random.choice(paths)()
    with suppress(UnicodeError):
        path = random.choice([str, quote, lambda text: quote(quote(text)), str.upper])(path)
    # The last one is what a store would call an image of that digest, if it were one.
    consistent = f"{root.as_uri()}/{digest[:2]}/{digest}.png"
    uri = random.choice([ref.uri, random.choice(SCHEMES) + path, random.choice(SCHEMES) + "//" + path, consistent])
    media_type = random.choice([ref.media_type, ref.media_type, random.choice(TYPES)])
    nbytes = random.choice([ref.nbytes, 0, -1, 1, 1 << 40, ref.nbytes + 1])
    return ImageRef(uri, digest, media_type, random.choice([9, 0, -1]), 9, nbytes)


def _digest(random: Random, digest: str) -> str:
    return random.choice(
        [
            _spoiled(random, digest),
            digest[: random.randrange(64)],
            digest.upper(),
            digest + random.choice(STRANGE),
            "../" * 20 + "outs",
            f"../outside/{digest}",
            f"../outside/{digest[:2]}/{digest}",
            "".join(random.choices(string.hexdigits, k=64)),
            "".join(random.choices(string.printable, k=64)),
        ]
    )


def _spoiled(random: Random, text: str) -> str:
    place = random.randrange(len(text) + 1)
    return text[:place] + random.choice(STRANGE) + text[place + random.randrange(4) :]


@pytest.mark.reliability
def test_law_confined_for_any_reference(
    ref: ImageRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, show: Show
) -> None:
    store, random, slowest, count = open_store(tmp_path / "in" / "store"), Random(8), Slowest(), effort(2_000, 50_000)
    good = store.read(ref)
    watched = Watched(monkeypatch, tmp_path / "outside")
    refused = 0
    for _ in range(count):
        forged = hostile(random, ref, tmp_path / "in" / "store")
        opens = watched.opens
        with slowest.timed():
            try:
                assert store.read(forged) == good
                assert (forged.uri, forged.sha256, forged.nbytes) == (ref.uri, ref.sha256, ref.nbytes)
            except FilmrollError as error:
                refused += 1
                assert str(tmp_path) not in str(error.wire())
                msgspec.json.encode(error.wire())
                assert not isinstance(error, OutsideStoreError) or watched.opens == opens
        if forged.uri != ref.uri or re.fullmatch("[0-9a-f]{64}", forged.sha256) is None:
            assert watched.opens == opens
    assert watched.outside == 0
    assert slowest.seconds < LONGEST
    assert refused > count / 2
    assert store.read(ref) == good
    show("confined", "0 opens outside the root, every call back within 1 s", hostile_references=count)


# A neighbour who swaps what lies in the store


def swap(root: Path, outside: Path, name: str, good: bytes, ended: Event) -> None:
    """Until ended: replaces an image's file and folder by links out of the store and worse, and puts them back."""
    random, shard, file = Random(1), root / name[:2], root / name[:2] / name

    def put_back() -> None:
        if shard.is_symlink() or shard.is_file():
            shard.unlink()
        shard.mkdir(exist_ok=True)
        spare = root / "tmp" / "spare"
        spare.write_bytes(good)
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        spare.rename(file)

    def instead(make: Callable[[Path], Any], place: Path) -> Callable[[], None]:
        def replaced() -> None:
            spare = root / "tmp" / f"spare{random.random()}"
            make(spare)
            if place.is_dir() and not place.is_symlink():
                place.rename(root / "tmp" / f"old{random.random()}")
            spare.rename(place)

        return replaced

    def link(target: Path) -> Callable[[Path], None]:
        return lambda spare: spare.symlink_to(target)

    tricks = [
        instead(link(outside / name), file),
        instead(link(Path(os.path.relpath(outside / name, shard))), file),
        instead(link(outside / name[:2]), shard),
        instead(link(Path("../../outside") / name[:2]), shard),
        instead(link(outside / "nothing"), file),
        instead(link(file), file),
        instead(os.mkfifo, file),
        instead(Path.mkdir, file),
        instead(lambda spare: spare.write_bytes(b"a file"), shard),
        instead(lambda spare: spare.write_bytes(bytes(len(good))), file),
        file.unlink,
    ]
    while not ended.is_set():
        for act in (random.choice(tricks), put_back):
            with suppress(OSError):
                act()
        if random.random() < 0.01:
            for crowded in (root / "tmp", root / "quarantine"):
                shutil.rmtree(crowded, ignore_errors=True)
                with suppress(OSError):
                    crowded.mkdir()


@contextmanager
def swapping(folder: Path, ref: ImageRef, good: bytes) -> Iterator[None]:
    context = multiprocessing.get_context("fork")
    ended = context.Event()
    place = (folder / "in" / "store", folder / "outside", Path(ref.uri).name, good, ended)
    neighbour = context.Process(target=swap, args=place, daemon=True)
    neighbour.start()
    try:
        yield
    finally:
        ended.set()
        neighbour.join(20)
        neighbour.kill()
    assert neighbour.exitcode == 0


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.reliability
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("act", ["read", "put"])
def test_law_confined_while_links_are_swapped(
    act: str, ref: ImageRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, show: Show
) -> None:
    root, outside = tmp_path / "in" / "store", tmp_path / "outside"
    image, before = canonical(noise(9, 9)), snapshot(outside)
    count = effort(3_000, 100_000) if act == "read" else effort(300, 5_000)
    watched, slowest = Watched(monkeypatch, outside), Slowest()
    good = bad = 0
    with swapping(tmp_path, ref, image.data):
        store = open_store(root)
        for _ in range(count):
            with slowest.timed():
                try:
                    if act == "put":
                        assert open_store(root).write(image) == ref
                    else:
                        assert store.read(ref) == image.data
                    good += 1
                except StoreError:
                    bad += 1
    assert watched.outside == 0
    assert watched.opens > count
    assert slowest.seconds < LONGEST
    assert good > count / 100
    assert bad > count / 100 or act == "put"  # Who puts mends what is in the way.
    assert snapshot(outside) == before
    show("confined", "0 opens outside the root, every call back within 1 s", **{f"{act}s_while_links_change": count})
