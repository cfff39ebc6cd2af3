"""Damaged references and descriptors crash nothing, hang nothing, swallow no memory, and raise errors of the tree."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from filmroll.errors import DescriptorError
from filmroll.image import MAX_INLINE_BYTES
from filmroll.wire.reference import MAX_INLINE_REFERENCE_CHARS, PREFIX, read_reference
from tests.store.conftest import Show, show  # noqa: F401 - the fixture
from tests.store.effort import FULL, effort
from tests.wire import fuzz
from tests.wire.variants import encoded, references, wrapped

PROPERTY = "references and descriptors, fuzzed"
SLACK = 24 * 1024
"""What an error and the parser's own state take, however short the input is."""


@pytest.mark.reliability
def test_fuzz(show: Show) -> None:  # noqa: F811
    count = effort(20_000, 10_000_000)
    found = fuzz.fuzz(count, processes=2 if FULL else 1)
    assert found.failures == {}
    assert sum(found.ends.values()) == count
    assert min(found.ends.values()) > count / 100
    assert set(found.ends) == {"refused", "ours", "foreign"}
    show(
        PROPERTY,
        "0 crashes, 0 untyped exceptions, none over 1 s",
        damaged_inputs=count,
        read=count - found.ends["refused"],
    )


def hostile() -> Iterator[str]:
    """As long as references may be, with an image or without, and worse than they look."""
    room = MAX_INLINE_REFERENCE_CHARS - 200
    image = "data:image/png;base64,"
    yield PREFIX + '{"family":"' + "x" * room
    yield PREFIX + '{"payload":{"a":' + "[" * room
    yield PREFIX + '{"payload":{"a":[' + "1," * (room // 2)
    yield PREFIX + '{"payload":{' + '"a":{},' * (room // 7)
    yield PREFIX + " " * room + "{}"
    yield PREFIX + '{"raw_image_uri":"' + image + "A" * room + '"}'
    yield PREFIX + '{"raw_image_uri":"' + image + "=" * room + '"}'
    yield PREFIX + '{"' + image + '":' + "[" * room
    yield PREFIX + '{"raw_image_uri":"\\U0001f600' + image + "A" * room + '"}'
    yield PREFIX + '{"raw_image_uri":"\\ud83d\\ude00' + image + "A" * room + '"}'
    yield PREFIX + "A" * room
    yield PREFIX + "-" * room
    yield PREFIX + "v2:" + ":" * room
    yield PREFIX + "v2:" + "a:" * 7 + "A" * room
    yield wrapped('{"raw_image_uri":"' + image + "A" * (room * 3 // 4 - 100) + '"}')[:room]
    yield wrapped("[" * (room * 3 // 4))
    yield PREFIX + "v3:" + encoded("{" + '"a":1,' * (room // 10))
    yield PREFIX + "9" * (MAX_INLINE_REFERENCE_CHARS + 1)
    yield references(payload={"a": [[1, 1, 1]] * 1_900})["B"]
    inline = fuzz.write_reference(fuzz.INLINE).replace("base64,", "base64," + "AAAA" * (MAX_INLINE_BYTES // 3 - 99))
    yield inline
    yield wrapped(inline[len(PREFIX) :])


def test_long_references_cost_neither_time_nor_memory() -> None:
    for text in hostile():
        started = time.process_time()
        memory = allocated("text", text)
        assert memory <= 4 * len(text) + SLACK, (text[:60], memory / len(text))
        assert time.process_time() - started < 2 * fuzz.PATIENCE, text[:60]


@pytest.mark.reliability
def test_reading_allocates_at_most_four_times_its_input(show: Show) -> None:  # noqa: F811
    count = effort(1_000, 100_000)
    for number in range(count):
        kind, value = fuzz.case(number)
        allowed = 4 * len(value if kind == "text" else str(value)) + SLACK
        memory = allocated(kind, value)
        # A table of the interpreter's own that has to grow just then grows once.
        assert memory <= allowed or allocated(kind, value) <= allowed, (number, memory, allowed)
    show(PROPERTY, "at most 4 times the input allocated, and 24 KiB", measured_inputs=count)


def allocated(kind: str, value: Any) -> int:
    """Bytes at the peak of reading it once, beyond those before."""
    reader = read_reference if kind == "text" else fuzz.read_descriptor
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        reader(value)
    except DescriptorError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak - before


# The fuzzer itself


def test_the_fuzzer_finds_what_it_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(value: Any) -> Any:
        if "7" in value:
            raise KeyError("untyped")
        return read_reference(value)

    monkeypatch.setattr(fuzz, "read_reference", broken)
    found = fuzz.fuzz(300)
    assert len(found.failures) > 30
    assert set(found.failures.values()) == {"KeyError('untyped')"}
