"""All that is done with a store, each from a state of its own, so that any call of it can be made to fail.

Whatever an operation gives is made of what a caller can see, and asking again gives the same.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from filmroll.errors import ImageDamagedError, ImageNotFoundError, StoreError
from filmroll.image import ImageRef
from filmroll.store import Store
from filmroll.store.ingest.canonical import Canonical
from filmroll.store.keys import QUARANTINE, TRASH, object_key


def image(text: str, length: int = 3000) -> Canonical:
    """Something to keep: a store of canonical bytes does not look into them."""
    data = (text.encode() * length)[:length]
    return Canonical(data, hashlib.sha256(data).hexdigest(), "image/png", 1, 1)


ONE, OTHER = image("one"), image("other")
NAME = f"{ONE.sha256}.png"
KEY = object_key(NAME)
BAD = ONE.data[:-1] + b"?"


def ref_of(store: Store, kept: Canonical = ONE) -> ImageRef:
    uri = store.shelf.uri(object_key(f"{kept.sha256}.png"))
    return ImageRef(uri, kept.sha256, kept.media_type, kept.width, kept.height, len(kept.data))


def nothing(store: Store) -> None:
    """A store that holds OTHER alone."""


def other(store: Store) -> None:
    store.write(OTHER)


def present(store: Store) -> None:
    store.write(ONE)


def old(store: Store) -> None:
    store.write(ONE)
    os.utime(store.shelf.root / KEY, (0, 0))  # type: ignore[attr-defined]


def cut(store: Store) -> None:
    """Verified in this process, and damaged since."""
    store.write(ONE)
    os.truncate(store.shelf.root / KEY, 9)  # type: ignore[attr-defined]


def damaged(store: Store) -> None:
    store.shelf.replace(KEY, BAD)


def trashed(store: Store) -> None:
    store.write(ONE)
    store.shelf.move(KEY, f"{TRASH}/{NAME}")


def misplaced(store: Store) -> None:
    """A reader was killed between setting aside what was mended meanwhile, and seeing that it was."""
    store.write(ONE)
    store.shelf.move(KEY, f"{QUARANTINE}/{NAME}.0123abcd")


def put(store: Store) -> object:
    return store.write(ONE) == ref_of(store)


def read(store: Store) -> object:
    return store.read(ref_of(store))


def create(store: Store) -> object:
    store.shelf.create(KEY, ONE.data)
    return store.shelf.read(KEY, len(ONE.data))


def copy(store: Store) -> object:
    store.shelf.copy(KEY, f"{TRASH}/{NAME}")
    return store.shelf.read(KEY, len(ONE.data)), store.shelf.read(f"{TRASH}/{NAME}", len(ONE.data))


def move(store: Store) -> object:
    # Asked again after a failure, it may have happened.
    if store.shelf.stat(KEY) is not None:
        store.shelf.move(KEY, f"{TRASH}/{NAME}")
    return store.shelf.stat(KEY), store.shelf.read(f"{TRASH}/{NAME}", len(ONE.data))


def delete(store: Store) -> object:
    store.shelf.delete(KEY)
    return store.shelf.stat(KEY)


def items(store: Store) -> object:
    return {item.key: item.nbytes for item in store.shelf.items() if not item.key.startswith("tmp/")}


def touch(store: Store) -> object:
    found = store.shelf.touch(KEY), store.shelf.stat(KEY)
    return found[0], found[1] is not None and time.time() - found[1].modified < 3600


def now(store: Store) -> object:
    return abs(store.shelf.now() - time.time()) < 3600


@dataclass(frozen=True)
class Operation:
    """What it does to a store, from which state, and what it gives: a value or one of some errors.

    `before` makes the state in another process, `known` in this one.
    """

    name: str
    before: Callable[[Store], None]
    act: Callable[[Store], object]
    gives: object
    known: Callable[[Store], None] = nothing
    empty: bool = False
    damaged: bool = False
    removed: bool = False
    links: bool = True

    @property
    def kept(self) -> bool:
        """Whether ONE can be read before and ever after."""
        return not self.removed and bool({self.before, self.known} & {present, old, trashed, misplaced})

    def run(self, store: Store) -> object:
        try:
            return self.act(store)
        except StoreError as error:
            if isinstance(self.gives, tuple) and type(error) in self.gives:
                return self.gives
            raise


BOTH = {object_key(f"{kept.sha256}.png"): len(kept.data) for kept in (ONE, OTHER)}

OPERATIONS = [
    Operation("put into no folder", nothing, put, True, empty=True),
    Operation("put first", nothing, put, True),
    Operation("put first by a process that has put before", nothing, put, True, known=other),
    Operation("put without hard links", nothing, put, True, links=False),
    Operation("put a hit", present, put, True),
    Operation("put an old hit", old, put, True),
    Operation("put a known image", present, put, True, known=present),
    Operation("put a known old image", nothing, put, True, known=old),
    Operation("put a known image that is gone", nothing, put, True, known=trashed),
    Operation("put a known image that was cut", nothing, put, True, known=cut, damaged=True),
    Operation("put a damaged image", damaged, put, True, damaged=True),
    Operation("put a damaged image without hard links", damaged, put, True, damaged=True, links=False),
    Operation("put an image on its way out", trashed, put, True),
    Operation("read", present, read, ONE.data),
    Operation("read an image on its way out", trashed, read, ONE.data),
    Operation("read an image that was set aside wrongly", misplaced, read, ONE.data),
    Operation("read a missing image", nothing, read, (ImageNotFoundError,)),
    Operation("read a damaged image", damaged, read, (ImageDamagedError, ImageNotFoundError), damaged=True),
    Operation("create", nothing, create, ONE.data),
    Operation("create what is there", present, create, ONE.data),
    Operation("copy", present, copy, (ONE.data, ONE.data)),
    Operation("copy without hard links", present, copy, (ONE.data, ONE.data), links=False),
    Operation("move", present, move, (None, ONE.data)),
    Operation("delete", present, delete, None, removed=True),
    Operation("items", present, items, BOTH),
    Operation("touch", old, touch, (True, True)),
    Operation("now", present, now, True),
]
