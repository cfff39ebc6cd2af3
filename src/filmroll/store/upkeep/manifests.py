"""Manifests: which images a run refers to, written into the store as the run goes.

A run has one manifest, a manifest has labels (a step, a checkpoint, a data set), a label names
images. What a label names is never removed. A label only grows, until it is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from filmroll.errors import ConfigError, ImageDamagedError, ImageLimitError, ManifestError
from filmroll.image import ImageRef
from filmroll.store.keys import MANIFESTS, read_object_name
from filmroll.store.shelves.shelf import Shelf
from filmroll.store.store import Store
from filmroll.store.together import together
from filmroll.store.upkeep.presence import missing, names_of, secure

MAX_IMAGES = 1 << 20
"""In one label."""

MAX_BYTES = 80 * MAX_IMAGES

_HEAD = re.compile(r"filmroll-manifest-1 (0|[1-9][0-9]{0,6})")
_NAME = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,99}")


def is_name(text: str) -> bool:
    """Whether a manifest or a label may be called so."""
    return _NAME.fullmatch(text) is not None


class Manifest:
    """What the run of that name refers to. Each label has one writer at a time."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = _checked(name, "manifest")

    def keep(self, label: str, images: Iterable[ImageRef | str], *, missing_ok: bool = False) -> None:
        """Refer to these images, or object names, as well. Once this returns they are there, and stay.

        ImageNotFoundError, and the label is as it was, if one of them is not in the store; with `missing_ok` it
        refers to the others.
        """
        images = list(images)
        wanted = {one for one in images if isinstance(one, str)}
        wanted |= names_of(one for one in images if not isinstance(one, str))
        key, before = self._key(label), self._read(label)
        self._write(key, wanted | (before or set()))
        gone = secure(self.store, wanted)
        if gone and missing_ok:
            self._write(key, (wanted | (before or set())) - set(gone))
        elif gone:
            self._undo(key, before)
            raise missing(gone)

    def drop(self, label: str) -> None:
        """Let go of what only this label refers to; upkeep may remove it from now on."""
        self.store.shelf.delete(self._key(label))

    def forget(self) -> int:
        """Drop all labels; says how many there were."""
        labels = self.labels()
        for label in labels:
            self.drop(label)
        return len(labels)

    def labels(self) -> list[str]:
        keys = (item.key.split("/") for item in self.store.shelf.items(f"{MANIFESTS}/{self.name}"))
        return sorted(parts[2] for parts in keys if len(parts) == 3 and is_name(parts[2]))

    def images(self, label: str | None = None) -> frozenset[str]:
        """Object names of what the label refers to, or all labels together."""
        labels = self.labels() if label is None else [label]
        return frozenset().union(*(self._read(one) or frozenset() for one in labels))

    def _key(self, label: str) -> str:
        return f"{MANIFESTS}/{self.name}/{_checked(label, 'label')}"

    def _read(self, label: str) -> frozenset[str] | None:
        try:
            return read_label(self.store.shelf, self._key(label))
        except FileNotFoundError:
            return None

    def _write(self, key: str, names: Iterable[str]) -> None:
        self.store.shelf.replace(key, write_names(names))

    def _undo(self, key: str, before: frozenset[str] | None) -> None:
        if before is None:
            self.store.shelf.delete(key)
        else:
            self._write(key, before)


@dataclass(frozen=True, slots=True)
class Label:
    """One label as it was found; `error` says why its names could not be read."""

    manifest: str
    label: str
    names: frozenset[str]
    error: ManifestError | None = None


def every_label(shelf: Shelf) -> Iterator[Label]:
    """All labels of all manifests. What is dropped meanwhile is left out."""
    keys = [item.key for item in shelf.items(MANIFESTS) if "/." not in item.key]
    yield from (label for label in together(lambda key: _found(shelf, key), keys) if label is not None)


def read_label(shelf: Shelf, key: str) -> frozenset[str]:
    """The names under a label's key; FileNotFoundError if there is none."""
    try:
        return read_names(shelf.read(key, MAX_BYTES))
    except (ValueError, ImageLimitError, ImageDamagedError) as error:
        raise ManifestError(
            f"the manifest {key[:300]} cannot be read: {error}",
            remedy="Write it again, or remove that file if nothing needs its images",
        ) from None


def write_names(names: Iterable[str]) -> bytes:
    lines = sorted(set(names))
    if len(lines) > MAX_IMAGES:
        raise ManifestError(
            f"a label cannot refer to {len(lines):,} images", remedy=f"At most {MAX_IMAGES:,}; write several labels"
        )
    return "".join(f"{line}\n" for line in (f"filmroll-manifest-1 {len(lines)}", *lines)).encode()


def read_names(data: bytes) -> frozenset[str]:
    """The object names in a label's text; ValueError unless it is exactly as it is written."""
    head, *names = data.decode("ascii").split("\n")
    if names[-1:] != [""] or _HEAD.fullmatch(head) is None:
        raise ValueError("it does not begin or end as a manifest does")
    names.pop()
    if len(names) != int(head.split()[1]):
        raise ValueError(f"it says {head.split()[1]} images and names {len(names)}")
    if any(read_object_name(name) is None for name in names) or names != sorted(set(names)):
        raise ValueError("its lines are not the sorted names of images")
    return frozenset(names)


def _found(shelf: Shelf, key: str) -> Label | None:
    _, name, label = (*key.split("/", 2), "")[:3]
    if not is_name(name) or not is_name(label):
        lost = ManifestError(f"{key[:300]} is no place for a manifest", remedy="Remove that file")
        return Label(name, label, frozenset(), lost)
    try:
        return Label(name, label, read_label(shelf, key))
    except FileNotFoundError:
        return None
    except ManifestError as error:
        return Label(name, label, frozenset(), error)


def _checked(name: str, what: str) -> str:
    if not is_name(name):
        raise ConfigError(
            f"{name[:120]!r} is no name for a {what}",
            remedy="1 to 100 of a-z, 0-9, '.', '_' and '-' are, with no dot at the beginning",
        )
    return name
