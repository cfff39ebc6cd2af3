"""References and descriptors damaged without end; what crashes, hangs or swallows memory is known by its number.

The case of a number is always the same, so `python -c "from tests.wire.fuzz import *; attempt(*case(NUMBER))"` shows
again what a test has found.
"""

from __future__ import annotations

import copy
import functools
import json
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec

from filmroll.errors import DescriptorError
from filmroll.wire.descriptor import ImageDescriptor, descriptor_json
from filmroll.wire.foreign import ForeignDescriptor
from filmroll.wire.reference import PREFIX, read_descriptor, read_reference, write_reference
from tests.wire.variants import DESCRIPTOR, INLINE, KIMI, descriptors, references, wrapped

PATIENCE = 1.0
"""Seconds of a processor after which an input counts as one that hangs."""

TOKENS = [
    "mmraw:", "v1:", "v2:", "v3:", ":", "{", "}", "[", "]", '"', ",", "\\", "\\u0000", "\\ud800", "null", "true", "NaN",
    "1e999", "-1", "0", "9" * 40, "18446744073709551616", "..", "/", "data:image/png;base64,", "file:///etc/passwd",
    '"pixel_values":', '"filmroll":', '"raw_ref":"mmraw:', "\0", "\x7f", "é", "\U0001f600", "\ud800", " " * 300,
    "A" * 999,
]  # fmt: skip
VALUES: list[Any] = [
    None, True, -1, 0, 2**24, 2**64, 1e308, float("nan"), "", "x" * 5000, "\ud800", "\n", [], [[]], [[1, 2]], {},
    "mmraw:{}", {"pixel_values": [1]}, b"bytes", [[1, 16, 16]] * 3, "ab" * 32, "ab" * 8, (1, 2), {1: 2}, {"v": 2},
    {"v": 1},
]  # fmt: skip


@functools.cache
def corpus() -> tuple[list[str], list[bytes]]:
    """One of every form that is read."""
    written = [write_reference(one) for one in (DESCRIPTOR, KIMI, INLINE)]
    objects = [descriptor_json(one) for one in (DESCRIPTOR, KIMI, INLINE)]
    return written + list(references().values()), [
        msgspec.json.encode(one) for one in (*objects, *descriptors().values())
    ]


def case(number: int) -> tuple[str, Any]:
    """`text` for a reference or `object` for a descriptor, and the damaged thing."""
    random = Random(number)
    texts, objects = corpus()
    kind = random.random()
    if kind < 0.55:
        return "text", _damaged(random, random.choice(texts))
    value = _changed(random, msgspec.json.decode(random.choice(objects)))
    if kind < 0.75:
        return "object", value
    # Base64 hides what damage does to the JSON inside: damage that, and wrap it whole.
    inside = _dumped(_changed(random, msgspec.json.decode(random.choice(texts[:3])[len(PREFIX) :])))
    if random.random() < 0.3:
        inside = _damaged(random, inside)
    return "text", random.choice((PREFIX + inside, wrapped(inside), PREFIX + "v3:" + wrapped(inside)[len(PREFIX) :]))


def attempt(kind: str, value: Any) -> str:
    """`refused` with an error of the tree, or read as `ours` or as `foreign`; anything else is raised."""
    try:
        read = read_reference(value) if kind == "text" else read_descriptor(value)
    except DescriptorError as error:
        assert len(str(error)) < 1_000, "the error is longer than anybody reads"
        return "refused"
    if isinstance(read, ForeignDescriptor):
        return "foreign"
    assert isinstance(read, ImageDescriptor)
    written = write_reference(read)
    assert read_reference(written) == read
    assert write_reference(read) == written
    return "ours"


@dataclass
class Found:
    ends: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)
    longest: float = 0.0


def fuzz(count: int, processes: int = 1) -> Found:
    """Attempt that many cases. A process that dies ends it all with BrokenProcessPool."""
    if processes == 1:
        return attempted(range(count))
    chunks = [range(start, min(start + 50_000, count)) for start in range(0, count, 50_000)]
    found = Found()
    with ProcessPoolExecutor(processes) as pool:
        for part in pool.map(attempted, chunks):
            found.ends += part.ends
            found.failures |= part.failures
            found.longest = max(found.longest, part.longest)
    return found


def attempted(numbers: range) -> Found:
    found = Found()
    for number in numbers:
        kind, value = case(number)
        started = time.process_time()
        try:
            found.ends[attempt(kind, value)] += 1
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            found.failures[number] = repr(error)[:300]
        took = time.process_time() - started
        found.longest = max(found.longest, took)
        if took > PATIENCE:
            found.failures[number] = f"takes {took:.1f} s"
    return found


def _damaged(random: Random, text: str) -> str:
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        place = random.randrange(len(text) + 1)
        end = min(len(text), place + random.choice((0, 1, 1, 2, 9, 60)))
        what = random.randrange(5)
        if what == 0:
            text = text[:place] + chr(random.randrange(128)) + text[place + 1 :]
        elif what == 1:
            text = text[:place] + random.choice(TOKENS) + text[end:]
        elif what == 2:
            text = text[:place] + text[end:]
        elif what == 3:
            text = text[:place] + text[place:end] * random.choice((2, 3, 40)) + text[end:]
        else:
            text = text[:place] if random.random() < 0.3 else text[:place] + text[:place]
        text = text[:60_000]
    return text if random.random() < 0.1 or text.startswith(PREFIX) else PREFIX + text


def _changed(random: Random, value: Any) -> Any:
    """A JSON value with some of what is inside replaced, dropped, renamed or added."""
    for _ in range(random.choice((0, 1, 1, 2, 3))):
        holder = value
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = random.choice(keys)
            if isinstance(holder[key], dict | list) and random.random() < 0.7:
                holder = holder[key]
                continue
            what = random.randrange(4)
            if what == 0 and isinstance(holder, dict):
                del holder[key]
            elif what == 1 and isinstance(holder, dict):
                holder[random.choice(("filmroll", "pixel_values", "raw_uri", "raw_ref", "x" * 99, "é"))] = holder[key]
            else:
                holder[key] = copy.deepcopy(random.choice(VALUES))
            break
    return value


def _dumped(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError):
        return json.dumps(value, default=str)
