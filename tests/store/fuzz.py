"""Damaged images without end, and processes that take them in one by one: what crashes or hangs one is known.

The case of a number is always the same, so `python -c "from tests.store.fuzz import *; attempt(case(NUMBER))"` shows
again what a test has found.
"""

from __future__ import annotations

import functools
import multiprocessing
import re
import signal
import struct
import warnings
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from random import Random
from typing import Any

from PIL import Image

from filmroll.errors import FilmrollError, ImageError
from filmroll.pixels.decode import decode
from filmroll.store.ingest import canonical as ingest
from filmroll.store.ingest.canonical import Limits, canonical
from filmroll.store.recent import Recent
from tests.store.bombs import hostile_images
from tests.store.pictures import MODES, ORIENTED, encode, interlaced_png, mutated, noise, picture, rechecked

PATIENCE = 2.0
"""Seconds of a processor after which an image counts as one that hangs."""

LIMITS = Limits(max_pixels=1 << 21)
PRIVATE = re.compile(r"0x[0-9a-f]|(^|[\s'\"(])/\w|<[\w.]+ (object|at)")
_CONTEXT = multiprocessing.get_context("spawn")


@functools.cache
def corpus() -> list[bytes]:
    """Small files of every format, mode and kind of structure; a few of them hostile to begin with."""
    files = []
    for format_, modes in MODES.items():
        for mode in modes:
            image, options = picture(mode, 19, 11, seed=7)
            turned = 6 if format_ in ORIENTED else None
            files += [encode(image, format_, **options), encode(image, format_, orientation=turned, **options)]
    image = Image.fromarray(noise(19, 11, seed=8))
    files += [interlaced_png(noise(19, 11, seed=9)), encode(image, "PNG", icc_profile=b"profile", dpi=(90, 90))]
    for options in ({"progressive": True}, {"restart_marker_blocks": 1}, {"keep_rgb": True}, {"xmp": b"<x/>"}):
        files.append(encode(image, "JPEG", **options))
    for options in ({"lossless": True}, {"icc_profile": b"profile"}, {"xmp": b"<x/>", "exact": True}):
        files.append(encode(image, "WEBP", **options))
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits", "group4"):
        mode = "1" if compression == "group4" else "RGB"
        files.append(encode(image.convert(mode), "TIFF", compression=compression))
    for format_ in ("GIF", "PNG", "WEBP", "TIFF"):
        files.append(encode(image, format_, save_all=True, append_images=[image.rotate(180)]))
    files += [data for _, data in hostile_images() if len(data) < 2_000]
    return files


def case(number: int) -> bytes:
    random = Random(number)
    data = mutated(random, random.choice(corpus()))
    if random.random() < 0.1:
        other = random.choice(corpus())
        data = data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]
    if data.startswith(b"\x89PNG") and random.random() < 0.8:
        return rechecked(data)
    if data.startswith(b"RIFF") and len(data) > 8 and random.random() < 0.5:
        return data[:4] + struct.pack("<L", len(data) - 8) + data[8:]
    return data


def attempt(data: bytes) -> str:
    """`refused` with an error that says nothing private, or `kept` whole; anything else is raised."""
    try:
        image = canonical(data, LIMITS)
    except FilmrollError as error:
        message = str(error.wire()["message"])
        assert isinstance(error, ImageError), repr(error)
        assert not PRIVATE.search(message), message
        return "refused"
    assert decode(image.data, max_pixels=LIMITS.max_pixels).shape == (image.height, image.width, 3)
    ingest._proved, ingest._made = Recent(64), Recent(1 << 20, weigh=lambda image: len(image.data))
    assert canonical(image.data) == image
    return "kept"


@dataclass
class Found:
    ends: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)

    def add(self, news: Counter[str] | tuple[int, str]) -> None:
        if isinstance(news, Counter):
            self.ends += news
        else:
            self.failures[news[0]] = news[1]


def fuzz(count: int, processes: int = 2) -> Found:
    """Attempt that many cases; a process that dies is followed by another, which begins after the case it died of."""
    found, share = Found(), -(-count // processes)
    ranges = [(start, min(start + share, count)) for start in range(0, count, share)]
    running = dict(_started(start, end) for start, end in ranges)
    while running:
        for connection in wait(list(running)):
            process, at, end = running[connection]
            try:
                found.add(connection.recv())
            except EOFError:
                process.join()
                del running[connection]
                if process.exitcode:
                    found.failures[at.value] = _died(process.exitcode)
                    running |= dict([_started(at.value + 1, end)])
    return found


def _died(code: int) -> str:
    return f"takes longer than {PATIENCE} s" if code == -signal.SIGPROF else f"ends the process with {code}"


def _started(start: int, end: int) -> tuple[Connection, tuple[Any, Any, int]]:
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    at = _CONTEXT.Value("q", start)
    process = _CONTEXT.Process(target=_work, args=(start, end, at, theirs), daemon=True)
    process.start()
    theirs.close()
    return ours, (process, at, end)


def _work(start: int, end: int, at: Any, connection: Connection) -> None:
    warnings.simplefilter("ignore")
    ends: Counter[str] = Counter()
    corpus()
    for number in range(start, end):
        at.value = number
        data = case(number)
        # If it ever fires, it ends the process, whatever C code that is in.
        signal.setitimer(signal.ITIMER_PROF, PATIENCE)
        try:
            ends[attempt(data)] += 1
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            connection.send((number, repr(error)[:300]))
        signal.setitimer(signal.ITIMER_PROF, 0)
    connection.send(ends)
