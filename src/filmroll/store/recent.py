"""A map that remembers a bounded number of keys, the latest ones."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """Thread-safe. What was added first is forgotten first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: dict[str, Value] = {}
        self._lock = threading.Lock()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> Value | None:
        return self._values.get(key)

    def add(self, key: str, value: Value) -> None:
        with self._lock:
            while len(self._values) >= self._capacity and key not in self._values:
                del self._values[next(iter(self._values))]
            self._values[key] = value
