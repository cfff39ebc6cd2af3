"""A map that remembers what was added latest, within a bound."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """Thread-safe. What was added first is forgotten first, so that all weighs at most `capacity`.

    Each value weighs 1 unless told otherwise.
    """

    def __init__(self, capacity: int, weigh: Callable[[Value], int] = lambda _: 1) -> None:
        self._capacity = capacity
        self._weigh = weigh
        self._weight = 0
        self._values: dict[str, Value] = {}
        self._lock = threading.Lock()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> Value | None:
        return self._values.get(key)

    def add(self, key: str, value: Value) -> None:
        with self._lock:
            if key in self._values:
                self._weight -= self._weigh(self._values[key])
            self._values[key] = value
            self._weight += self._weigh(value)
            while self._weight > self._capacity:
                self._weight -= self._weigh(self._values.pop(next(iter(self._values))))
