"""Somebody claims another grid than the image has.

The grid says how many patches an image has and where they lie. An engine that believes it cuts pixels
at the wrong places, reads beyond them, or dies of a shape error in its worker (CVE-2026-105754). So the
grid is computed from the decoded image, and a claim that differs is refused, whether the image is
new to the server or in its caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from body import PLACES, REFERENCES, retold, told
from target import Target, main
from verdict import Outcome, Refused

GRIDS: dict[str, Any] = {
    "turned": lambda grid: [grid[0], grid[2], grid[1]],
    "larger": lambda grid: [grid[0], grid[1], 2 * grid[2]],
    "smaller": lambda grid: [grid[0], grid[1] // 2, grid[2]],
    "of two frames": lambda grid: [2, *grid[1:]],
    "as large as may be said": lambda _: [2**24, 2**24, 2**24],
}
"""Which could be an image's."""

UNREADABLE: dict[str, Any] = {
    "zero": [1, 0, 4],
    "negative": [1, -2, 4],
    "None": None,
    "a list of None": [None, None, None],
    "a huge number": [1, 2**63, 4],
    "a number beyond all": [1, 10**400, 4],
    "a float": [1, 2.5, 4],
    "a text": "1,2,4",
    "two numbers": [1, 4],
    "nested": [[1, 2, 4]],
    "true": [1, True, 4],
}


def attack(target: Target) -> Iterator[Outcome]:
    name, (grid,) = next(iter(told(target.good())["payload"].items()))
    refused = Refused("grid", REFERENCES, 1)
    for said, forge in GRIDS.items():
        yield target.send(said, retold(target.good(), payload={name: [forge(grid)]}), refused)
    for said, value in UNREADABLE.items():
        yield target.send(
            said, retold(target.good(), payload={name: [value]}), Refused("reference_format", REFERENCES, 1)
        )
    yield target.send("no grid", retold(target.good(), payload={}), refused)
    yield target.send(
        "two grids", retold(target.good(), payload={name: [grid, grid]}), Refused("reference_format", REFERENCES, 1)
    )
    yield target.send("under another name", retold(target.good(), payload={"video_grid_thw": [grid]}), refused)
    yield target.send(
        "beside another", retold(target.good(), payload={name: [grid], "video_grid_thw": [grid]}), refused
    )
    new = target.request([target.picture(0), target.picture(77)])
    yield target.send("of an image that is new", retold(new, payload={name: [[1, 2, 2]]}), refused)
    yield target.send("another width", retold(target.good(), own={"width": 63}), refused)
    yield target.send(
        "another number of tokens", retold(target.good(), own={"tokens": 99}), Refused("request", PLACES, 1)
    )


if __name__ == "__main__":
    main(attack)
