"""A cache bounded in bytes: the least recently used goes first, and no key is built twice at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

from filmroll.materialize.watch import Watch


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

    Items are shared by everybody who asks for them, so they must not be changed. What had to go is
    found all the same while somebody still holds it: it costs nothing more.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.watch = Watch()
        self._lock = threading.Lock()
        self._items: OrderedDict[Key, Item] = OrderedDict()
        self._alive: WeakValueDictionary[Key, Item] = WeakValueDictionary()
        self._building: dict[tuple[Key, Hashable], Future[Item]] = {}
        self._hits = self._misses = self._evicted = self._nbytes = 0

    def get(self, key: Key, build: Callable[[], Item], claim: Hashable = None) -> Item:
        """The item under `key`, built now if nobody has it and nobody is building it.

        Whoever asks during a build waits for it and shares its result, or its error. An error is not
        kept: the next one to ask builds again. An item larger than the limit is passed on, not kept.

        An error may be due to what one of them says: builds are shared by those with the same `claim`.
        """
        return self.begin(key, build, claim).result()

    def begin(self, key: Key, build: Callable[[], Item], claim: Hashable = None) -> Future[Item]:
        """`get` for a thread that has other things to do: it builds, but does not wait for another's build."""
        with self._lock:
            promise: Future[Item] = Future()
            item = self._items.get(key, self._alive.get(key))
            running = self._building.get((key, claim))
            if item is None and running is None:
                self._misses += 1
                self._building[key, claim] = promise
            else:
                self._hits += 1
            if item is not None:
                self._keep(key, item)
        if item is not None:
            self.watch.found()
            promise.set_result(item)
            return promise
        if running is not None:
            self.watch.found()
            return running
        self.watch.missed()
        self._build(key, claim, build, promise)
        return promise

    def counts(self) -> CacheCounts:
        with self._lock:
            return CacheCounts(self._hits, self._misses, self._evicted, len(self._items), self._nbytes)

    def _build(self, key: Key, claim: Hashable, build: Callable[[], Item], promise: Future[Item]) -> None:
        try:
            item = build()
        # Whatever ends the build, an interrupt too, must not leave the others waiting.
        except BaseException as error:  # noqa: BLE001 whoever asks for the result gets it
            with self._lock:
                del self._building[key, claim]
            promise.set_exception(error)
            return
        with self._lock:
            del self._building[key, claim]
            self._alive[key] = item
            self._keep(key, item)
        promise.set_result(item)

    def _keep(self, key: Key, item: Item) -> None:
        """Have the item be the one used latest; others make room for it."""
        before = self._nbytes
        if (old := self._items.pop(key, None)) is not None:
            self._nbytes -= old.nbytes
        if item.nbytes <= self.limit:
            while self._nbytes + item.nbytes > self.limit:
                _, oldest = self._items.popitem(last=False)
                self._nbytes -= oldest.nbytes
                self._evicted += 1
            self._items[key] = item
            self._nbytes += item.nbytes
        self.watch.kept(self._nbytes - before)
