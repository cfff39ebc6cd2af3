"""Memory that a thread uses again and again, for pictures that are dropped as soon as they are cut.

The first touch of fresh pages costs as much as filling them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from filmroll.pixels.patches import Rgb

KEPT_BYTES = 16 << 20
"""What a thread keeps at most: a picture of 5 million pixels. A larger one gets memory of its own."""


class Scratch:
    """Room for one picture. Without memory of its own it gives fresh memory each time."""

    def __init__(self, memory: npt.NDArray[np.uint8] | None = None) -> None:
        self._memory = memory

    def picture(self, height: int, width: int, channels: int) -> Rgb:
        """An array to decode into, [H, W, C]; what it holds is undefined."""
        nbytes = height * width * channels
        if self._memory is None or nbytes > self._memory.nbytes:
            return np.empty((height, width, channels), np.uint8)
        return self._memory[:nbytes].reshape(height, width, channels)


class _Kept(threading.local):
    def __init__(self) -> None:
        # Pages are not touched before they are used, so a thread with small pictures holds little.
        self.memory: npt.NDArray[np.uint8] | None = np.empty(KEPT_BYTES, np.uint8)


_kept = _Kept()


@contextmanager
def borrowed() -> Iterator[Scratch]:
    """The thread's own memory, until the block ends; who borrows inside a block gets fresh memory."""
    memory, _kept.memory = _kept.memory, None
    try:
        yield Scratch(memory)
    finally:
        if memory is not None:
            _kept.memory = memory
