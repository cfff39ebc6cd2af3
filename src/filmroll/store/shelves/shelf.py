"""Where bytes lie under keys, in a folder or a bucket: all that differs between stores.

A key is a path of one to three names, such as `ab/abcd….png`; what keys mean is for keys.py. A
shelf does not know what an image is: digests, damage and deduplication are for store.py. A new
kind of place is one more Shelf, and one line in tests/store/test_conformance.py.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from filmroll.errors import StoreUnavailableError
from filmroll.store.keys import TEMPORARY


@dataclass(frozen=True, slots=True)
class Item:
    """What lies under a key; `modified` is in seconds by the shelf's own clock.

    `nbytes` is -1 where something other than a file is in its place.
    """

    key: str
    nbytes: int
    modified: float


class Shelf(ABC):
    """Thread-safe, safe beside any other process on the same place, and picklable.

    FileNotFoundError says that a key is free, ImageDamagedError that something which is no file is
    in the way, StoreUnavailableError that the place itself fails, a StoreFullError for want of room;
    nothing else is raised.
    """

    @abstractmethod
    def uri(self, key: str) -> str:
        """How the world names what lies under the key."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Put bytes under a free key, all at once, and survive any crash from then on.

        False, and nothing changed, if the key is taken.
        """

    @abstractmethod
    def replace(self, key: str, data: bytes) -> None:
        """`create`, but what lies there gives way: a reader finds the old or the new, never neither."""

    @abstractmethod
    def settle(self, key: str) -> None:
        """See to it that what another process has put, and this one has read, survives a crash."""

    @abstractmethod
    def read(self, key: str, at_most: int) -> bytes:
        """What lies there; ImageLimitError, before anything is read, if it is longer than that."""

    @abstractmethod
    def stat(self, key: str) -> Item | None:
        """What lies there, without opening it; None if the key is free."""

    @abstractmethod
    def touch(self, key: str) -> bool:
        """Have it modified now, unchanged; False if the key is free."""

    @abstractmethod
    def items(self, folder: str = "") -> Iterator[Item]:
        """Everything in a folder and the folders in it; what comes or goes meanwhile may be left out."""

    @abstractmethod
    def copy(self, key: str, to: str) -> bool:
        """Put the same bytes under another key as well, all at once, and survive any crash from then on.

        False if that is taken; what it is taken by then survives a crash, too.
        """

    @abstractmethod
    def move(self, key: str, to: str) -> Item:
        """Put what lies there, whatever it is, under another key instead; what was there gives way.

        What was moved, with the latest time before it left: who moves an old image must learn that
        somebody has touched it just now. Where a move is a copy and a removal, that is as it was
        seen in between, and a touch between seeing and removing goes unnoticed.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Free the key; it may be free already."""

    def now(self) -> float:
        """The time by the clock that `modified` is told by, which may differ from ours: the place is asked."""
        probe = f"{TEMPORARY}/clock-{secrets.token_hex(8)}"
        try:
            self.create(probe, b"")
            item = self.stat(probe)
        finally:
            self.delete(probe)
        if item is None:
            raise StoreUnavailableError("the store lost what was just written")
        return item.modified
