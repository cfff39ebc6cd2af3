"""The store beside the plain file, diskcache and a bare content-addressed write: what trust costs.

    python benchmarks/store.py

Objects of about 10 KB, 400 KB and 4 MB are PNG files. All ways take turns object by object, in one
run and on one disk, so that a slow moment hits them alike; medians are compared. `write` is what
the store does with bytes whose digest is known, as the plain ways do not hash either; `put` takes
the digest and decodes the image once, which no other way here does.
"""

from __future__ import annotations

import hashlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import diskcache
import numpy as np
from harness import conclude, show
from PIL import Image

from filmroll.image import ImageRef
from filmroll.store import Store, open_store
from filmroll.store.ingest import canonical as ingest
from filmroll.store.ingest.canonical import Canonical, canonical
from filmroll.store.recent import Recent
from filmroll.store.together import THREADS, together

SIZES = {"10 KB": (108, 200), "400 KB": (780, 80), "4 MB": (2500, 20)}
"""Side of a picture in pixels, and how many of them."""

ROUNDS = 5
"""How often many are written at once, so many that a median means something."""

READS = 5
"""How often each object is read, once all are written."""

Times = dict[str, list[float]]


def picture(side: int, seed: int) -> bytes:
    """A PNG of windows with lines of text-like specks and, in one corner, something like a photograph."""
    draw_from = np.random.default_rng(seed)
    pixels = np.full((side, side, 3), 245, np.uint8)
    for _ in range(40):
        top, left = draw_from.integers(0, side, 2)
        height, width = draw_from.integers(1, side // 3 + 2, 2)
        pixels[top : top + height, left : left + width] = draw_from.integers(0, 256, 3, np.uint8)
    specks = draw_from.random((side, side)) < 0.05
    pixels[specks] = 20
    corner = side // 2
    slope = np.linspace(0, 200, corner)[:, None, None] + draw_from.normal(0, 6, (corner, corner, 3))
    pixels[:corner, :corner] = slope.clip(0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=4)
    return out.getvalue()


def plain_write(folder: Path, name: str, data: bytes) -> None:
    """Write, fsync, rename: how a careful program writes a file."""
    draft = folder / f"{name}.draft"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.write(fd, data)
    os.fsync(fd)
    os.close(fd)
    draft.rename(folder / name)


def folder_synced_write(folder: Path, name: str, data: bytes) -> None:
    """And the folder's fsync, without which a crash may take the name back."""
    plain_write(folder, name, data)
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def hashed_write(folder: Path, data: bytes) -> None:
    """As restic keeps a pack: named by its digest, in a folder of that digest's beginning."""
    name = hashlib.sha256(data).hexdigest()
    shard = folder / name[:2]
    shard.mkdir(exist_ok=True)
    plain_write(shard, name, data)


def hashed_read(path: Path) -> bytes:
    data = path.read_bytes()
    hashlib.sha256(data).hexdigest()
    return data


def timed(times: Times, way: str, act: Callable[[], object]) -> None:
    started = time.perf_counter()
    act()
    times.setdefault(way, []).append(time.perf_counter() - started)


class Place:
    """Every way's folder on the same disk, with the store's folders made."""

    def __init__(self, folder: Path) -> None:
        self.plain, self.synced, self.hashed = folder / "plain", folder / "synced", folder / "hashed"
        for one in (self.plain, self.synced, self.hashed):
            one.mkdir()
        self.store, self.putting = open_store(folder / "store"), open_store(folder / "put")
        self.cache = diskcache.Cache(folder / "diskcache", size_limit=1 << 40)
        self.times: Times = {}
        self.kept: list[tuple[str, bytes, ImageRef]] = []
        for number in range(256):
            (self.hashed / f"{number:02x}").mkdir()
            # A store makes each of its folders once: not what a write costs.
            for store in (self.store, self.putting):
                store.shelf.create(f"{number:02x}/warm", b"")

    def write(self, number: int, data: bytes) -> None:
        """One object, every way in."""
        name, image = f"{number}.png", canonical(data)
        self.in_turns(
            number,
            {
                "write, fsync, rename": lambda: plain_write(self.plain, name, data),
                "the same, fsync of the folder": lambda: folder_synced_write(self.synced, name, data),
                "sha256, write, fsync, rename": lambda: hashed_write(self.hashed, data),
                "diskcache, no fsync": lambda: self.cache.set(name, data),
                "filmroll write": lambda: self.store.write(image),
                "filmroll put, new": lambda: put_new(self.putting, data),
            },
        )
        self.kept.append((name, data, self.store.write(image)))

    def ways_to_write(self) -> dict[str, Callable[[Canonical], object]]:
        """Those that are compared for many at once."""
        return {
            "write, fsync, rename": lambda image: plain_write(self.plain, image.sha256, image.data),
            "the same, fsync of the folder": lambda image: folder_synced_write(self.synced, image.sha256, image.data),
            "filmroll write": self.store.write,
        }

    def read(self, number: int) -> None:
        """One object, every way out, and in again where it is known."""
        name, data, ref = self.kept[number]
        self.in_turns(
            number,
            {
                "filmroll put, known": lambda: self.putting.put(data),
                "read": (self.plain / name).read_bytes,
                "read, sha256": lambda: hashed_read(self.plain / name),
                "diskcache read": lambda: self.cache.get(name),
                "filmroll read": lambda: self.store.read(ref),
            },
        )

    def in_turns(self, first: int, ways: dict[str, Callable[[], object]]) -> None:
        """Each way once; who goes first changes, since the first pays for cold caches."""
        names = list(ways)
        for position in range(len(names)):
            name = names[(first + position) % len(names)]
            started = time.perf_counter()
            ways[name]()
            self.times.setdefault(name, []).append(time.perf_counter() - started)


def measure(side: int, count: int) -> dict[str, float]:
    """Median seconds of every way, over `count` objects."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        for number in range(count):
            place.write(number, picture(side, number))
        for _ in range(READS):
            for number in range(count):
                place.read(number)
        place.cache.close()
    return {way: statistics.median(taken) for way, taken in place.times.items()}


def at_once(side: int, count: int) -> dict[str, float]:
    """Seconds an object of writing many of them, one after another and a few at a time."""
    times: Times = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        for turn in range(ROUNDS):
            images = [canonical(picture(side, seed)) for seed in range(turn * count, (turn + 1) * count)]
            for way, write in place.ways_to_write().items():
                for how, threads in (("", 1), (f", {THREADS} at a time", THREADS)):
                    fresh = [replace(image, sha256=digest_for(way + how, image.sha256)) for image in images]
                    started = time.perf_counter()
                    for _ in together(write, fresh, threads):
                        pass
                    times.setdefault(way + how, []).append((time.perf_counter() - started) / count)
        place.cache.close()
    return {way: statistics.median(taken) for way, taken in times.items()}


def digest_for(way: str, digest: str) -> str:
    """The same bytes under another name for each way: none finds what another has written."""
    return hashlib.sha256(f"{way} {digest}".encode()).hexdigest()


def put_new(store: Store, data: bytes) -> ImageRef:
    """As in a process that has never seen the bytes."""
    seen, ingest._proved = ingest._proved, Recent(1)
    try:
        return store.put(data)
    finally:
        ingest._proved = seen


def main() -> None:
    found: dict[str, dict[str, float]] = {}
    for label, (side, count) in SIZES.items():
        found[label] = measure(side, count)
    ways = list(found["10 KB"])
    show(
        "Median milliseconds an object",
        ["", *found],
        [[way, *(1000 * found[label][way] for label in found)] for way in ways],
    )

    many = at_once(*SIZES["10 KB"])
    show("10 KB, many: median milliseconds an object", ["", ""], [[way, 1000 * many[way]] for way in many])

    def over(one: str, two: str) -> dict[str, float]:
        return {label: medians[one] / medians[two] for label, medians in found.items()}

    writes = over("filmroll write", "write, fsync, rename")
    durable = over("filmroll write", "the same, fsync of the folder")
    reads = over("filmroll read", "read, sha256")
    known = over("filmroll put, new", "filmroll put, known")
    show(
        "Ratios",
        ["", *found],
        [
            ["write over write, fsync, rename", *writes.values()],
            ["write over the same with the folder's fsync", *durable.values()],
            ["verified read over read, sha256", *reads.values()],
            ["new put over known put", *known.values()],
        ],
    )
    conclude(
        "store",
        {
            "write_over_plain": max(writes.values()),
            "write_over_plain_with_folder_synced": max(durable.values()),
            "many_over_plain": many[f"filmroll write, {THREADS} at a time"] / many["write, fsync, rename"],
            "many_over_plain_many": many[f"filmroll write, {THREADS} at a time"]
            / many[f"the same, fsync of the folder, {THREADS} at a time"],
            "read_over_plain": max(reads.values()),
            "known_put_speedup": min(known.values()),
        },
        {"write_over_plain": ("<=", 1.15), "read_over_plain": ("<=", 1.3), "known_put_speedup": (">=", 20)},
    )


if __name__ == "__main__":
    main()
