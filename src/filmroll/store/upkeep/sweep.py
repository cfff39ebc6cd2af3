"""sweep: removing what was left over, and what can be made again; never an image."""

from __future__ import annotations

from dataclasses import dataclass

from filmroll.store.keys import FEATURES, TEMPORARY
from filmroll.store.store import Store
from filmroll.store.together import together
from filmroll.store.upkeep.leases import every_lease

TIME_TO_LIVE = 86_400.0


@dataclass(slots=True)
class Swept:
    """How many of each were removed."""

    temporary: int = 0
    features: int = 0
    leases: int = 0


def sweep(store: Store, *, time_to_live: float = TIME_TO_LIVE) -> Swept:
    """Remove temporary files and features that are older, and leases that have been over for longer."""
    shelf = store.shelf
    horizon = shelf.now() - time_to_live
    done = Swept()
    old = (item.key for folder in (TEMPORARY, FEATURES) for item in shelf.items(folder) if item.modified < horizon)
    # A lease that could not be read is looked at by people.
    over = [held.key for held in every_lease(shelf) if held.error is None and held.expires < horizon]

    def remove(key: str) -> str:
        shelf.delete(key)
        return key.partition("/")[0]

    for folder in together(remove, old):
        done.temporary += folder == TEMPORARY
        done.features += folder == FEATURES
    done.leases = sum(1 for _ in together(remove, over))
    return done
