"""stats: what a store holds, and who needs it."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from filmroll.store.keys import OWN_FOLDERS, TRASH, named_object, read_object_name
from filmroll.store.shelves.shelf import Item
from filmroll.store.store import Store
from filmroll.store.upkeep.leases import every_lease
from filmroll.store.upkeep.manifests import every_label
from filmroll.store.upkeep.tally import Tally


@dataclass(slots=True)
class Share:
    """What one manifest refers to."""

    labels: int = 0
    images: Tally = field(default_factory=Tally)
    only: Tally = field(default_factory=Tally)
    """Images that no other manifest and no lease refers to: what letting go of it would free."""
    missing: int = 0
    """Images that it refers to and that are not there."""


@dataclass(slots=True)
class Holder:
    """What one lease holds, and for how many seconds if it is not renewed; 0 if it is over."""

    owner: str
    images: int
    seconds: float


@dataclass(slots=True)
class Census:
    """What a store holds."""

    images: dict[str, Tally] = field(default_factory=dict)
    """In place, by media type."""
    unreferenced: Tally = field(default_factory=Tally)
    """In place, and nothing refers to them."""
    folders: dict[str, Tally] = field(default_factory=lambda: {name: Tally() for name in sorted(OWN_FOLDERS)})
    """What else lies in a store's own folders: in trash, in quarantine, and so on."""
    foreign: Tally = field(default_factory=Tally)
    """What is nothing of a store's."""
    manifests: dict[str, Share] = field(default_factory=dict)
    leases: list[Holder] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    """Manifests and leases that cannot be read, and why: until they can, gc removes nothing."""


def census(store: Store) -> Census:
    """Count everything. Beside live writers, what comes or goes meanwhile may be left out."""
    done = Census()
    wanted, held = _manifests(store, done), _leases(store, done)
    needed = Counter(name for names in wanted.values() for name in names)
    needed.update(held)
    sizes: dict[str, int] = {}
    for item in store.shelf.items():
        _count(item, done, needed.keys(), sizes)
    for manifest, names in wanted.items():
        share = done.manifests[manifest]
        for name in names:
            if name not in sizes:
                share.missing += 1
                continue
            share.images.add(sizes[name])
            if needed[name] == 1:
                share.only.add(sizes[name])
    return done


def _manifests(store: Store, done: Census) -> dict[str, set[str]]:
    wanted: dict[str, set[str]] = defaultdict(set)
    for label in every_label(store.shelf):
        if label.error is not None:
            done.unreadable.append(label.error.problem)
            continue
        wanted[label.manifest] |= label.names
        done.manifests.setdefault(label.manifest, Share()).labels += 1
    return wanted


def _leases(store: Store, done: Census) -> set[str]:
    now, names = time.time(), set[str]()
    for held in every_lease(store.shelf):
        if held.error is not None:
            done.unreadable.append(held.error.problem)
            continue
        done.leases.append(Holder(held.owner, len(held.names), max(0.0, held.expires - now)))
        if held.expires > now:
            names |= held.names
    return names


def _count(item: Item, done: Census, needed: AbstractSet[str], sizes: dict[str, int]) -> None:
    folder, _, rest = item.key.partition("/")
    name = named_object(item.key)
    media_type = read_object_name(name) if name is not None and item.nbytes >= 0 else None
    if name is not None and media_type is not None:
        done.images.setdefault(media_type[1], Tally()).add(item.nbytes)
        sizes[name] = item.nbytes
        if name not in needed:
            done.unreferenced.add(item.nbytes)
    elif folder in OWN_FOLDERS:
        done.folders[folder].add(item.nbytes)
        if folder == TRASH:
            sizes.setdefault(rest, item.nbytes)
    else:
        done.foreign.add(item.nbytes)
