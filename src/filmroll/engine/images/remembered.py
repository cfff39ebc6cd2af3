"""References that an engine has seen, by the sha256 of their text: a client need not send them again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from filmroll.engine.statistics import Statistics
from filmroll.errors import UnknownReferenceError
from filmroll.store.recent import Recent

REMEMBERED_BYTES = 64 * 2**20
"""About 120,000 references of 500 characters."""


class Remembered:
    """Bounded in characters; what was seen first is forgotten first. Thread-safe.

    The digest is of the whole reference, not of the image: knowing an image's digest buys nothing.
    """

    def __init__(self, statistics: Statistics, limit: int = REMEMBERED_BYTES) -> None:
        self._statistics = statistics
        self._limit = limit
        self._texts: Recent[str] = Recent(limit, len)

    def add(self, texts: Mapping[str, str]) -> None:
        """Remember references whose images have been verified, by their digests."""
        for digest, text in texts.items():
            if len(text) <= self._limit:
                self._texts.add(digest, text)

    def knows(self, digest: str) -> bool:
        return digest in self._texts

    def text(self, digest: str) -> str:
        found = self._texts.get(digest)
        if found is None:
            self._statistics.add(reference_misses=1)
            raise UnknownReferenceError(
                "no reference with this sha256 was seen here lately", remedy="Send the reference itself"
            )
        self._statistics.add(reference_hits=1)
        return found


def digest_of(text: str) -> str:
    """What stands for a reference in `mm_hashes` where its slot of `kwargs_data` is null."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
