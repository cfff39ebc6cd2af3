"""Leases: images that somebody holds for a while, such as a replay buffer or what is in flight.

A lease says how long it holds, from the moment when it was last touched, by the store's own clock.
Whoever dies without a word lets go when that time is over.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated

import msgspec

from filmroll.errors import ConfigError, FilmrollError, ImageDamagedError, ImageLimitError, ManifestError, StoreError
from filmroll.image import ImageRef
from filmroll.store.keys import LEASES
from filmroll.store.shelves.shelf import Item, Shelf
from filmroll.store.store import Store
from filmroll.store.together import together
from filmroll.store.upkeep.presence import missing, names_of, secure

log = logging.getLogger(__name__)

MAX_SECONDS = 7 * 86_400.0
"""A holder who dies without a word delays upkeep by no more than this."""

_MAX_BYTES = 1 << 28


class LeaseNote(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in a lease's file."""

    format: Annotated[str, msgspec.Meta(pattern=r"\Afilmroll-lease-1\Z")]
    owner: Annotated[str, msgspec.Meta(max_length=200)]
    seconds: Annotated[float, msgspec.Meta(gt=0, le=MAX_SECONDS)]
    images: list[Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\.(png|jpg|webp)\Z")]]


# Made here and not in each thread: two that are the first to decode a type at once crash in msgspec (0.22).
_notes = msgspec.json.Decoder(LeaseNote)


class Lease:
    """Holds images from its `with` on; it renews itself from a thread, however long its owner is busy.

        with Lease(store, "replay buffer") as lease:
            lease.hold(refs)
            ...
            lease.release(refs)

    `hold` writes the lease anew: hold many images at once rather than one by one.
    """

    def __init__(self, store: Store, owner: str, *, seconds: float = 3600.0) -> None:
        if not 0 < seconds <= MAX_SECONDS:
            raise ConfigError(f"a lease cannot hold for {seconds:g} seconds", remedy=f"At most {MAX_SECONDS:g}")
        self.store = store
        self.owner = owner[:200]
        self.seconds = seconds
        self.images: frozenset[str] = frozenset()
        self._key = f"{LEASES}/{secrets.token_hex(16)}"
        self._renewed = time.time()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name=f"lease {self.owner}", daemon=True)

    def __enter__(self) -> Lease:
        self._write(self.images)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        # A lease that cannot be removed now ends by itself.
        with suppress(StoreError):
            self.store.shelf.delete(self._key)

    def hold(self, images: Iterable[ImageRef]) -> None:
        """Hold these as well. Once this returns they are there, and stay as long as the lease.

        ImageNotFoundError, and nothing more is held than before, if one of them is not in the store.
        """
        wanted = names_of(images)
        with self._lock:
            self._write(self.images | wanted)
            gone = secure(self.store, wanted)
            if gone:
                self._write(self.images)
                raise missing(gone)
            self.images |= wanted

    def release(self, images: Iterable[ImageRef]) -> None:
        """Hold these no longer."""
        with self._lock:
            self.images -= names_of(images)
            self._write(self.images)

    def renew(self) -> None:
        """Hold for another term. ImageNotFoundError if the last one was over and an image has gone since."""
        with self._lock:
            began = time.time()
            if self.store.shelf.touch(self._key) and time.time() - self._renewed < self.seconds:
                self._renewed = began
                return
            self._write(self.images)
            gone = secure(self.store, self.images)
            if gone:
                raise missing(gone)

    def _write(self, images: frozenset[str] | set[str]) -> None:
        began = time.time()
        note = LeaseNote("filmroll-lease-1", self.owner, self.seconds, sorted(images))
        self.store.shelf.replace(self._key, msgspec.json.encode(note))
        self._renewed = began

    def _keep_renewing(self) -> None:
        while not self._over.wait(self.seconds / 3):
            try:
                self.renew()
            except FilmrollError as error:
                log.error("the lease %r could not be renewed: %s", self.owner, error)  # noqa: TRY400 - no traceback


@dataclass(frozen=True, slots=True)
class Held:
    """One lease as it was found; `error` says why it could not be read."""

    key: str
    owner: str
    expires: float
    names: frozenset[str]
    error: ManifestError | None = None


def every_lease(shelf: Shelf) -> Iterator[Held]:
    """All leases, also those that are over. What is removed meanwhile is left out."""
    items = [item for item in shelf.items(LEASES) if "/." not in item.key]
    yield from (held for held in together(lambda item: _found(shelf, item), items) if held is not None)


def _found(shelf: Shelf, item: Item) -> Held | None:
    try:
        note = _notes.decode(shelf.read(item.key, _MAX_BYTES))
    except FileNotFoundError:
        return None
    except (ValueError, ImageLimitError, ImageDamagedError) as error:
        problem = ManifestError(
            f"the lease {item.key[:300]} cannot be read: {error}", remedy="Remove that file if nobody holds it"
        )
        return Held(item.key, "", 0.0, frozenset(), problem)
    return Held(item.key, note.owner, item.modified + note.seconds, frozenset(note.images))
