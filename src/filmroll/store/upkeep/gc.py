"""gc: removing images that nothing refers to, beside live writers, without locks.

docs/upkeep.md says why nothing that is needed can be lost, call by call.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from filmroll.store.keys import OWN_FOLDERS, TRASH, named_object, object_key, read_object_name
from filmroll.store.shelves.shelf import Item
from filmroll.store.store import Store
from filmroll.store.together import THREADS, together
from filmroll.store.upkeep.references import References, references
from filmroll.store.upkeep.tally import Tally


@dataclass(slots=True)
class Collected:
    """What gc did, or would do: each object is counted once, under what became of it."""

    removed: Tally = field(default_factory=Tally)
    """Out of trash, for good."""
    trashed: Tally = field(default_factory=Tally)
    """Into trash."""
    restored: Tally = field(default_factory=Tally)
    """Out of trash, back into place."""
    manifest: Tally = field(default_factory=Tally)
    """In place, because a manifest names it."""
    lease: Tally = field(default_factory=Tally)
    """In place, because a lease holds it."""
    fresh: Tally = field(default_factory=Tally)
    """In place, because it was put lately."""
    waiting: Tally = field(default_factory=Tally)
    """In trash, not long enough."""
    foreign: int = 0
    """Objects that are nothing of a store's; they are never touched."""


def gc(store: Store, *, delete: bool = False, grace: float | None = None, threads: int = THREADS) -> Collected:
    """Find images that no manifest and no lease refers to, and with `delete` remove them, in two rounds.

    The first round puts them into trash, where readers still find them; a round that comes after
    the grace removes them for good. Only while nobody writes may `grace` be less than the writers'.
    """
    return _Collector(store, store.grace if grace is None else grace, delete, threads).run()


class _Collector:
    def __init__(self, store: Store, grace: float, delete: bool, threads: int) -> None:
        self._store = store
        self._shelf = store.shelf
        self._delete = delete
        self._threads = threads
        # Looking needs no exact time, and no right to write, which the store's own clock takes.
        self._now = store.shelf.now() if delete else time.time()
        self._horizon = self._now - grace
        self._done = Collected()

    def run(self) -> Collected:
        needed = references(self._shelf, self._now)
        leaving = {item.key.rpartition("/")[2]: item for item in self._in_trash()}
        self._empty_trash(leaving, needed)
        self._fill_trash(leaving, needed)
        if self._delete:
            self._look_again()
        return self._done

    def _in_trash(self) -> Iterator[Item]:
        for item in self._shelf.items(TRASH):
            name = item.key.removeprefix(f"{TRASH}/")
            if item.nbytes >= 0 and read_object_name(name) is not None:
                yield item

    def _empty_trash(self, leaving: dict[str, Item], needed: References) -> None:
        back, out = [], []
        for name, item in leaving.items():
            if name in needed:
                back.append(name)
                self._done.restored.add(item.nbytes)
            elif item.modified < self._horizon:
                out.append(item.key)
                self._done.removed.add(item.nbytes)
            else:
                self._done.waiting.add(item.nbytes)
        if self._delete:
            self._all(together(self._restore, back, self._threads))
            self._all(together(self._remove, out, self._threads))

    def _remove(self, key: str) -> None:
        """Remove for good what lies in trash, unless it has changed since it was listed."""
        item = self._shelf.stat(key)
        if item is not None and item.modified < self._horizon:
            self._shelf.delete(key)

    def _fill_trash(self, leaving: dict[str, Item], needed: References) -> None:
        unneeded = self._unneeded(leaving, needed)
        if self._delete:
            for nbytes, gone in together(self._discard, unneeded, self._threads):
                (self._done.trashed if gone else self._done.fresh).add(nbytes)
        else:
            for item in unneeded:
                self._done.trashed.add(item.nbytes)

    def _unneeded(self, leaving: dict[str, Item], needed: References) -> Iterator[Item]:
        for item in self._shelf.items():
            name = named_object(item.key)
            if name is None or item.nbytes < 0:
                self._done.foreign += name is not None or item.key.partition("/")[0] not in OWN_FOLDERS
            elif name in leaving and name in needed:
                pass  # It was counted when it was put back.
            elif name in needed.manifests:
                self._done.manifest.add(item.nbytes)
            elif name in needed.leases:
                self._done.lease.add(item.nbytes)
            elif item.modified >= self._horizon:
                self._done.fresh.add(item.nbytes)
            elif name in leaving:
                # Nothing may arrive in trash where another gc may be about to remove what lay there.
                self._done.waiting.add(item.nbytes)
            else:
                yield item

    def _discard(self, item: Item) -> tuple[int, bool]:
        """Put an image into trash, unless somebody has put it again since it was listed."""
        name = item.key.rpartition("/")[2]
        try:
            moved = self._shelf.move(item.key, f"{TRASH}/{name}")
        except FileNotFoundError:
            return item.nbytes, True  # Another gc was faster.
        if moved.modified >= self._horizon:
            self._restore(name)
            return item.nbytes, False
        # Its time in trash begins.
        self._store.keep_fresh(Item(f"{TRASH}/{name}", moved.nbytes, moved.modified))
        return item.nbytes, True

    def _look_again(self) -> None:
        """Put back what was referred to while this gc was at work."""
        needed = references(self._shelf, self._now)
        names = (item.key.rpartition("/")[2] for item in self._in_trash())
        self._all(together(self._restore, (name for name in names if name in needed), self._threads))

    def _restore(self, name: str) -> None:
        key, trash = object_key(name), f"{TRASH}/{name}"
        try:
            if not self._shelf.copy(trash, key) and self._store.set_aside(key):
                # The good copy was the one in trash.
                self._shelf.copy(trash, key)
            self._shelf.delete(trash)
        except FileNotFoundError:
            return  # Another gc was faster.

    @staticmethod
    def _all(results: Iterator[None]) -> None:
        for _ in results:
            pass
