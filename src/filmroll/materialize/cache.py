"""A cache bounded in bytes: the least recently used goes first, and no key is built twice at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class HasBytes(Protocol):
    @property
    def nbytes(self) -> int: ...


Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item", bound=HasBytes)


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """What the cache has done so far: every `get` is a hit or a miss, and every miss is one build."""

    hits: int
    misses: int
    evicted: int
    items: int
    nbytes: int


class Cache(Generic[Key, Item]):
    """Items by key, of `limit` bytes together at most. Thread-safe.

    Items are shared by everybody who asks for them, so they must not be changed.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._items: OrderedDict[Key, Item] = OrderedDict()
        self._building: dict[Key, Future[Item]] = {}
        self._hits = self._misses = self._evicted = self._nbytes = 0

    def get(self, key: Key, build: Callable[[], Item]) -> Item:
        """The item under `key`, built now if nobody has it and nobody is building it.

        Whoever asks during a build waits for it and shares its result, or its error. An error is not
        kept: the next one to ask builds again. An item larger than the limit is passed on, not kept.
        """
        with self._lock:
            if (item := self._items.get(key)) is not None:
                self._hits += 1
                self._items.move_to_end(key)
                return item
            if (running := self._building.get(key)) is not None:
                self._hits += 1
            else:
                self._misses += 1
                promise = self._building[key] = Future()
        if running is not None:
            return running.result()
        return self._build(key, build, promise)

    def counts(self) -> CacheCounts:
        with self._lock:
            return CacheCounts(self._hits, self._misses, self._evicted, len(self._items), self._nbytes)

    def _build(self, key: Key, build: Callable[[], Item], promise: Future[Item]) -> Item:
        try:
            item = build()
        # Whatever ends the build, an interrupt too, must not leave the others waiting.
        except BaseException as error:
            with self._lock:
                del self._building[key]
            promise.set_exception(error)
            raise
        with self._lock:
            del self._building[key]
            self._keep(key, item)
        promise.set_result(item)
        return item

    def _keep(self, key: Key, item: Item) -> None:
        if item.nbytes > self.limit:
            return
        while self._nbytes + item.nbytes > self.limit:
            _, oldest = self._items.popitem(last=False)
            self._nbytes -= oldest.nbytes
            self._evicted += 1
        self._items[key] = item
        self._nbytes += item.nbytes
