"""Stores whose images can be made old, and that let a test in before every call that reaches their place."""

from __future__ import annotations

import datetime
import itertools
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

from filmroll.store import Store
from filmroll.store.shelves.files import FileShelf
from filmroll.store.shelves.objects import ObjectShelf
from filmroll.store.shelves.shelf import Item, Shelf

Meddle: TypeAlias = Callable[[], None]
"""Called ahead of every call; it may raise, and it may use the same store as another process would."""


class Place(ABC):
    """A folder or a bucket, to be opened any number of times."""

    @abstractmethod
    def shelf(self, before: Meddle) -> Shelf:
        """The place as one process sees it."""

    @abstractmethod
    def age(self, key: str, seconds: float) -> None:
        """Have it modified that long ago."""

    @abstractmethod
    def link(self, key: str, to: str) -> None:
        """One object under two keys, where there can be such a thing."""

    def store(self, before: Meddle = lambda: None) -> Store:
        return Store(self.shelf(before))


class Folder(Place):
    """Let in ahead of every call of the shelf, each of which is one system call that matters."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def shelf(self, before: Meddle) -> Shelf:
        return _watched(FileShelf, before)(self._path)

    def age(self, key: str, seconds: float) -> None:
        then = time.time() - seconds
        os.utime(self._path / key, (then, then))

    def link(self, key: str, to: str) -> None:
        os.link(self._path / key, self._path / to)


def _watched(kind: type[FileShelf], before: Meddle) -> type[FileShelf]:
    def watch(name: str) -> Callable[..., Any]:
        def call(self: Any, *args: Any) -> Any:
            before()
            return getattr(kind, name)(self, *args)

        return call

    def items(self: Any, folder: str = "") -> Iterator[Item]:
        before()
        for item in kind.items(self, folder):
            yield item
            before()

    calls = ("create", "replace", "settle", "read", "stat", "touch", "copy", "move", "delete", "now")
    return type("Watched", (kind,), {"items": items, **{name: watch(name) for name in calls}})


class Bucket(Place):
    """obstore's own bucket in memory: let in ahead of every request."""

    _count = itertools.count()

    def __init__(self, path: Path) -> None:
        self._url = f"memory://bucket-{next(self._count)}/some/prefix"
        self._ages: dict[str, tuple[datetime.datetime, datetime.datetime]] = {}

    def shelf(self, before: Meddle) -> Shelf:
        shelf = ObjectShelf(self._url)
        shelf._client = _Client(shelf._client, self._ages, before)
        return shelf

    def age(self, key: str, seconds: float) -> None:
        shelf = ObjectShelf(self._url)
        meta = shelf._client.head(shelf._path(key))
        then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
        self._ages[meta["path"]] = (meta["last_modified"], then)

    def link(self, key: str, to: str) -> None:
        shelf = ObjectShelf(self._url)
        shelf._client.copy(shelf._path(key), shelf._path(to))


class _Client:
    """obstore's client; an object that was made old says so until it is written again."""

    def __init__(self, real: Any, ages: dict[str, Any], before: Meddle) -> None:
        self._real, self._ages, self._before = real, ages, before

    def put(self, *args: Any, **options: Any) -> Any:
        self._before()
        return self._real.put(*args, **options)

    def get(self, path: str) -> Any:
        self._before()
        found = self._real.get(path)
        return SimpleNamespace(meta=self._aged(found.meta), bytes=found.bytes)

    def head(self, path: str) -> Any:
        self._before()
        return self._aged(self._real.head(path))

    def list(self, *args: Any, **options: Any) -> Iterator[Any]:
        for page in self._real.list(*args, **options):
            self._before()
            yield [self._aged(meta) for meta in page]

    def copy(self, path: str, to: str) -> None:
        self._before()
        self._real.copy(path, to)

    def delete(self, path: str) -> None:
        self._before()
        self._real.delete(path)

    def _aged(self, meta: Any) -> Any:
        written, pretended = self._ages.get(meta["path"], (None, None))
        return {**meta, "last_modified": pretended} if written == meta["last_modified"] else meta


PLACES: dict[str, Callable[[Path], Place]] = {"folder": Folder, "bucket": Bucket}


class CrashError(BaseException):
    """The process is gone: nothing after this call happens."""


def crash_at(number: int) -> Meddle:
    """From that call on, every call fails."""
    calls = itertools.count(1)

    def before() -> None:
        if next(calls) >= number:
            raise CrashError

    return before


def once_at(number: int, act: Callable[[], None], then: Callable[[], None]) -> Meddle:
    """`act` before the call of that number, `then` before each call after it."""
    calls = itertools.count(1)

    def before() -> None:
        call = next(calls)
        if call == number:
            act()
        elif call > number:
            then()

    return before
