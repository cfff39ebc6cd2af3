"""Somebody who can write into the store puts images there that cost their reader time or memory.

A file of kilobytes announces gigapixels, unpacks to hundreds of megabytes, or has a million parts; decoded,
it takes the engine down with it. So an image's header is judged before anything is unpacked. The files
are those of the store's tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from body import REFERENCES
from target import Target, main
from verdict import Outcome, Refused

from tests.store.bombs import hostile_images

SLICE = 9
"""Without a full count, each such one is sent."""
RIGHT = Refused(("image_format", "image_limit"), REFERENCES, 1)


def attack(target: Target) -> Iterator[Outcome]:
    for name, data in islice(hostile_images(), 0, None, 1 if target.thorough else SLICE):
        with target.planted(data) as bomb:
            yield target.send(name, target.request([target.picture(0), bomb]), RIGHT)


if __name__ == "__main__":
    main(attack)
