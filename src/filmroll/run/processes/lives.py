"""How often a process of a run may die before the run gives up: what dies of itself would die for ever."""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol

from filmroll.errors import DiskFullError, FilmrollError

WITHIN_S = 600.0
"""A process may die as often as is configured in so long."""


class Mortal(Protocol):
    """A process that has died."""

    def lost(self, circumstance: str = "") -> FilmrollError: ...


class Lives:
    """Those of one process of the run, which is another one after each death."""

    def __init__(self, many: int) -> None:
        self._many = many
        self._deaths: deque[float] = deque()

    def spend(self, process: Mortal) -> None:
        """Count a death; one too many is the error that says what the process last said, and a full disk is at once."""
        lost = process.lost()
        if isinstance(lost, DiskFullError):
            raise lost
        now = time.monotonic()
        self._deaths.append(now)
        while self._deaths[0] < now - WITHIN_S:
            self._deaths.popleft()
        if len(self._deaths) > self._many:
            raise process.lost(f", {len(self._deaths)} times within {WITHIN_S / 60:.0f} minutes")
