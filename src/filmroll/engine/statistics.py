"""What an engine counts while it runs."""

from __future__ import annotations

import threading
from collections import Counter

from filmroll.wire.receipt import Receipt


class Statistics:
    """Counters since the start. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()

    def add(self, **amounts: int) -> None:
        with self._lock:
            self._counts.update(amounts)

    def add_receipt(self, receipt: Receipt) -> None:
        self.add(
            images_referenced=receipt.referenced,
            images_verified=receipt.verified,
            images_decoded=receipt.decoded,
            images_consumed=receipt.consumed,
        )

    def reject(self, code: str) -> None:
        """Count a request that ended with an error of this code."""
        with self._lock:
            self._rejected[code] += 1

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)

    def rejected(self) -> dict[str, int]:
        with self._lock:
            return dict(self._rejected)
