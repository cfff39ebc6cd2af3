"""verify: reading every image again, and all that says which are needed, and saying what is not as it should be."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from filmroll.errors import FilmrollError, ImageDamagedError, ImageNotFoundError, StoreUnavailableError
from filmroll.store.keys import OWN_FOLDERS, TRASH, named_object, object_key, read_object_name
from filmroll.store.shelves.shelf import Item
from filmroll.store.store import Store
from filmroll.store.together import THREADS, together
from filmroll.store.upkeep.leases import every_lease
from filmroll.store.upkeep.manifests import every_label
from filmroll.store.upkeep.presence import absent

Progress = Callable[[int, int], None]
"""Told, as images are read, how many bytes of how many are done."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    key: str
    problem: str


@dataclass(slots=True)
class Verified:
    """What was read, and what was found; a store is whole if nothing is damaged."""

    images: int = 0
    nbytes: int = 0
    damaged: list[Finding] = field(default_factory=list)
    """Images that are not what they should be, or not there; manifests and leases that cannot be read."""
    foreign: list[Finding] = field(default_factory=list)
    """What is nothing of a store's. It does no harm."""


def verify(store: Store, progress: Progress | None = None, *, threads: int = THREADS) -> Verified:
    """Read and hash every image, also in trash; the damaged ones are set aside. Safe beside writers and gc."""
    done = Verified()
    needed = _needed(store, done.damaged)
    images = []
    for item in store.shelf.items():
        if _object(item) is not None:
            images.append(item)
        elif item.key.partition("/")[0] not in OWN_FOLDERS - {TRASH}:
            done.foreign.append(Finding(item.key, "it is no image's place" if item.nbytes >= 0 else "it is no file"))
    total = sum(max(0, item.nbytes) for item in images)
    for item, problem in zip(images, together(partial(_problem, store), images, threads), strict=True):
        done.images += 1
        done.nbytes += max(0, item.nbytes)
        if problem:
            done.damaged.append(Finding(item.key, problem))
        if progress is not None:
            progress(done.nbytes, total)
    there = {_object(item) for item in images}
    done.damaged += _missing(store, {name: who for name, who in needed.items() if name not in there})
    return done


def _object(item: Item) -> str | None:
    """The object name of an item that should be an image, in its place or in trash."""
    name = named_object(item.key)
    if name is None and item.key.startswith(f"{TRASH}/"):
        name = item.key.removeprefix(f"{TRASH}/")
    return name if name is not None and read_object_name(name) is not None else None


def _needed(store: Store, damaged: list[Finding]) -> dict[str, str]:
    """Object names that are referred to, each with who does so."""
    needed = {}
    for label in every_label(store.shelf):
        if label.error is not None:
            damaged.append(Finding(f"manifest {label.manifest}/{label.label}", label.error.problem))
        needed.update(dict.fromkeys(label.names, f"the manifest {label.manifest}, label {label.label},"))
    now = time.time()  # The store's own clock would take the right to write.
    for held in every_lease(store.shelf):
        if held.error is not None:
            damaged.append(Finding(held.key, held.error.problem))
        if held.expires > now:
            needed.update(dict.fromkeys(held.names, f"the lease {held.owner!r}"))
    return needed


def _problem(store: Store, item: Item) -> str:
    """What is wrong with an image, or nothing; a damaged one is set aside."""
    try:
        how = _damage(store, item.key)
    except FilmrollError as error:
        return f"it cannot be verified: {error.problem}"
    if not how:
        return ""
    try:
        return f"{how}; it was set aside" if store.set_aside(item.key) else ""
    except FileNotFoundError:
        return ""
    except StoreUnavailableError as error:
        return f"{how}; {error.problem}"


def _damage(store: Store, key: str) -> str:
    name = key.rpartition("/")[2]
    try:
        data = store.shelf.read(key, store.limits.max_bytes)
    except ImageDamagedError as error:
        return error.problem
    except FileNotFoundError:
        # Between place and trash, or removed, by gc or by a writer that has put it again.
        with suppress(ImageNotFoundError):
            store.read_named(name, store.limits.max_bytes)
        return ""
    return "" if hashlib.sha256(data).hexdigest() == name.partition(".")[0] else "its bytes have another digest"


def _missing(store: Store, suspects: dict[str, str]) -> list[Finding]:
    """Those that are nowhere, and still needed after another look."""
    gone = absent(store, suspects)
    still = _needed(store, []) if gone else {}
    return [Finding(object_key(name), f"{still[name]} needs it, and it is not there") for name in gone if name in still]
