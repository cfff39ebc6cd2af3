"""Hostile images are refused by their headers, and what is accepted costs no more than its pixels."""

from __future__ import annotations

import multiprocessing
import time
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from filmroll.errors import FilmrollError, ImageError
from filmroll.store.ingest import canonical as ingest
from filmroll.store.ingest.canonical import canonical
from filmroll.store.recent import Recent
from tests.store.bombs import FILES, MIB, hostile_images, odd_images
from tests.store.conftest import Show

SECONDS = 0.010
"""Of a processor, for refusing an image, on a machine that does `_reference` in 0.4 ms."""

MEMORY = 16 * MIB


@dataclass(frozen=True)
class Cost:
    refused: str
    """What a client is told, or nothing if the image was accepted."""

    seconds: float
    memory: int
    pixels: int = 0


def measure(data: bytes, times: int = 3) -> Cost:
    """Taken in, in this process; the cheapest of a few times, as other work on the machine costs as well."""
    return min((_once(data) for _ in range(times)), key=lambda cost: cost.seconds)


def _once(data: bytes) -> Cost:
    ingest._proved, ingest._made = Recent(8), Recent(8, weigh=lambda image: len(image.data))
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # The peak is counted anew.
    before, start, image, refused = _peak(), time.process_time(), None, ""
    try:
        image = canonical(data)
    except FilmrollError as error:
        assert isinstance(error, ImageError)
        refused = str(error.wire()["message"])
    seconds = time.process_time() - start
    return Cost(refused, seconds, _peak() - before, image.width * image.height if image else 0)


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def _reference() -> float:
    """Seconds of a processor for work like that of walking a file's parts: how slow this machine is just now."""
    data, start = memoryview(bytes(64)), time.process_time()
    for place in range(2_500):
        zlib.crc32(data[place & 31 : 32 + (place & 31)])
    return time.process_time() - start


def _begin() -> None:
    warnings.simplefilter("ignore")
    for data in FILES.values():
        canonical(data)


def slowness() -> float:
    return max(1.0, min(_reference() for _ in range(5)) / 0.0004)


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_begin) as pool:
        yield pool


@pytest.mark.reliability
def test_hostile_images_are_refused_by_their_headers(process: ProcessPoolExecutor, show: Show) -> None:
    names, costly = set(), {}
    most, seconds = 0, 0.0
    for name, data in hostile_images():
        assert name not in names
        names.add(name)
        allowed = SECONDS * process.submit(slowness).result()
        cost = process.submit(measure, data).result()
        if not cost.refused or cost.seconds > allowed or cost.memory > MEMORY:
            costly[name] = cost
        most, seconds = max(most, cost.memory), max(seconds, cost.seconds)
    assert not costly
    assert len(names) >= 200
    found = f"all refused, at most {seconds * 1000:.0f} ms and {most / MIB:.0f} MB"
    show("bombs", found, hostile_images=len(names))


@pytest.mark.reliability
def test_odd_images_cost_no_more_than_their_pixels(process: ProcessPoolExecutor, show: Show) -> None:
    """Of 10 megapixels: 160 MB and 2.5 s, most of which is writing them anew as PNG."""
    costly, count = {}, 0
    for name, data in odd_images():
        slow = process.submit(slowness).result()
        cost = process.submit(measure, data, 1).result()
        count += 1
        if (
            cost.refused
            or cost.seconds > slow * (0.6 + 250e-9 * cost.pixels)
            or cost.memory > (MEMORY + 16 * cost.pixels + len(data))
        ):
            costly[name] = cost
    assert not costly
    show("bombs", "all accepted at the cost of their pixels", odd_images=count)
