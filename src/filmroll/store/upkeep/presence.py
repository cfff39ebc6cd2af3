"""Seeing to it that images are there and stay, for whoever has said that he refers to them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial

from filmroll.errors import ImageDamagedError, ImageNotFoundError
from filmroll.image import ImageRef
from filmroll.store.keys import TRASH, object_key, object_name
from filmroll.store.store import Store
from filmroll.store.together import together

_NAMED = 5
"""Missing images that an error names."""

_ATTEMPTS = 4


def names_of(images: Iterable[ImageRef]) -> set[str]:
    """The object names of these images, less those that are inside their references or another system's files.

    Upkeep removes neither, so nobody has to keep them.
    """
    named = {object_name(image.sha256, image.media_type): image.uri for image in images}
    return {name for name, uri in named.items() if uri.endswith(f"/{object_key(name)}")}


def secure(store: Store, names: Iterable[str]) -> list[str]:
    """See each image in its place, put lately by upkeep's measure; the names of those that are gone.

    Call this after it is written, where upkeep reads, that they are needed. Upkeep that has read
    before that finds them too young to remove, and upkeep that reads later finds them needed: so
    nothing depends on how long anything takes.
    """
    names = sorted(names)
    return [name for name, here in zip(names, together(partial(_secure, store), names), strict=True) if not here]


def _secure(store: Store, name: str) -> bool:
    for _ in range(_ATTEMPTS):
        item = store.shelf.stat(object_key(name))
        if item is not None and item.nbytes < 0:
            return False
        if item is not None and store.keep_fresh(item):
            return True
        try:
            store.shelf.copy(f"{TRASH}/{name}", object_key(name))
        except FileNotFoundError:
            # Upkeep may be putting it back itself, or a reader may find it where we do not look.
            _take_back(store, name)
    return False


def _take_back(store: Store, name: str) -> bool:
    """Whether a reader finds the image, who then puts it back into its place."""
    try:
        store.read_named(name, store.limits.max_bytes)
    except (ImageNotFoundError, ImageDamagedError):
        return False
    return True


def absent(store: Store, names: Iterable[str]) -> list[str]:
    """The names of those that are neither in their place nor in trash."""

    def is_absent(name: str) -> bool:
        # Twice in its place: it may be put back while trash is looked at.
        places = (object_key(name), f"{TRASH}/{name}", object_key(name))
        return all(store.shelf.stat(place) is None for place in places) and not _take_back(store, name)

    names = sorted(names)
    return [name for name, gone in zip(names, together(is_absent, names), strict=True) if gone]


def missing(names: Collection[str]) -> ImageNotFoundError:
    """The error that says that these are not in the store."""
    some = ", ".join(sorted(names)[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    count = "one image is" if len(names) == 1 else f"{len(names)} images are"
    return ImageNotFoundError(
        f"{count} needed and not in the store: {some}",
        remedy="Put them again; what is to stay needs a manifest or a lease within half a day",
    )
