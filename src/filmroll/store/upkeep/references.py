"""Which images are needed, as all manifests and leases say together."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from filmroll.store.shelves.shelf import Shelf
from filmroll.store.upkeep.leases import every_lease
from filmroll.store.upkeep.manifests import every_label


@dataclass(frozen=True, slots=True)
class References:
    """Object names that manifests name, and those that leases hold which are not over yet."""

    manifests: AbstractSet[str]
    leases: AbstractSet[str]

    def __contains__(self, name: str) -> bool:
        return name in self.manifests or name in self.leases


def references(shelf: Shelf, now: float) -> References:
    """Everything that is needed at that time; a ManifestError if only one of the texts cannot be read."""
    manifests: set[str] = set()
    leases: set[str] = set()
    for label in every_label(shelf):
        if label.error is not None:
            raise label.error
        manifests |= label.names
    for held in every_lease(shelf):
        if held.error is not None:
            raise held.error
        if held.expires > now:
            leases |= held.names
    return References(manifests, leases)
