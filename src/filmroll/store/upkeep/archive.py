"""One file with all images of a run, to take elsewhere: the same bytes for the same images.

docs/format.md says what stands in it. It is read member by member, each of them is the one that
must come next, and nothing is ever extracted to a path.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec

from filmroll.durable import disk_full, says_full, sync
from filmroll.errors import ArchiveError, ConfigError, ImageError
from filmroll.store.ingest.canonical import canonical
from filmroll.store.keys import object_name
from filmroll.store.store import Store
from filmroll.store.together import together
from filmroll.store.upkeep.manifests import MAX_BYTES, Manifest, is_name, read_names, write_names
from filmroll.store.upkeep.presence import absent, missing
from filmroll.store.upkeep.tar import read_end, read_member, write_end, write_member

MAX_LABEL_BYTES = 1 << 30
"""Of all labels together: some 15 million names."""

_HEAD = "filmroll.json"
_LABELS = "labels/"
_IMAGES = "images/"


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first member: what this is, and how much of it there is."""

    format: Annotated[str, msgspec.Meta(pattern=r"\Afilmroll-archive-1\Z")]
    manifest: Annotated[str, msgspec.Meta(max_length=100)]
    labels: Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]
    images: Annotated[int, msgspec.Meta(ge=0, le=1 << 32)]


_heads = msgspec.json.Decoder(Head)


def export_archive(manifest: Manifest, path: Path) -> Head:
    """Write a manifest and its images into a new file, which has its name when it is whole and on disk.

    Every image is verified on its way. ImageNotFoundError names those that are missing.
    """
    store = manifest.store
    labels = {label: manifest.images(label) for label in manifest.labels()}
    images = sorted(frozenset[str]().union(*labels.values()))
    gone = absent(store, images)
    if gone:
        raise missing(gone)
    head = Head("filmroll-archive-1", manifest.name, len(labels), len(images))
    with _new_file(path) as file:
        write_member(file, _HEAD, msgspec.json.encode(head) + b"\n")
        for label, names in labels.items():
            write_member(file, _LABELS + label, write_names(names))
        read = together(lambda name: store.read_named(name, store.limits.max_bytes), images)
        for name, data in zip(images, read, strict=True):
            write_member(file, _IMAGES + name, data)
        write_end(file)
    return head


def import_archive(path: Path, store: Store) -> Head:
    """Put an archive's images into a store, and at the end its manifest beside what that store knows.

    Whatever is wrong with it is an ArchiveError. What an import that broke off has left is taken
    for granted by the next one, or is removed by gc like all that nothing refers to.
    """
    with _opened(path) as file:
        head = _read_head(file)
        labels = _read_labels(file, head)
        images = sorted(frozenset[str]().union(*labels.values()))
        if len(images) != head.images:
            raise ArchiveError(f"it says {head.images} images, its labels name {len(images)}")
        members = (read_member(file, store.limits.max_bytes) for _ in images)
        for expected, name in zip(images, together(lambda member: _put(store, *member), members), strict=True):
            if name != _IMAGES + expected:
                raise ArchiveError(f"{name[:100]!r} comes where {expected} should")
        read_end(file)
    manifest = Manifest(store, head.manifest)
    for label, names in labels.items():
        manifest.keep(label, names)
    return head


def _read_head(file: BinaryIO) -> Head:
    name, data = read_member(file, 4096)
    try:
        head = _heads.decode(data)
    except ValueError:
        head = None
    if name != _HEAD or head is None or not is_name(head.manifest):
        raise ArchiveError("it does not begin as an archive of filmroll does")
    return head


def _read_labels(file: BinaryIO, head: Head) -> dict[str, frozenset[str]]:
    labels: dict[str, frozenset[str]] = {}
    room, last = MAX_LABEL_BYTES, ""
    for _ in range(head.labels):
        name, data = read_member(file, min(room, MAX_BYTES))
        room -= len(data)
        label = name.removeprefix(_LABELS)
        if not name.startswith(_LABELS) or not is_name(label) or label <= last:
            raise ArchiveError(f"{name[:100]!r} comes where a label should")
        try:
            labels[label] = read_names(data)
        except ValueError as error:
            raise ArchiveError(f"the label {label!r} cannot be read: {error}") from None
        last = label
    return labels


def _put(store: Store, name: str, data: bytes) -> str:
    """Store an image that is what its name says and is canonical already."""
    expected = name.removeprefix(_IMAGES)
    if hashlib.sha256(data).hexdigest() != expected.partition(".")[0]:
        raise ArchiveError(f"{name[:100]!r} has another digest")
    try:
        image = canonical(data, store.limits)
    except ImageError as error:
        raise ArchiveError(f"{name[:100]!r} is no image: {error.problem}") from None
    if object_name(image.sha256, image.media_type) != expected:
        raise ArchiveError(f"{name[:100]!r} is not in canonical form")
    store.write(image)
    return name


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A draft beside the path, which becomes the path when the body ends well."""
    if path.exists():
        raise ConfigError(f"{path} is there already", remedy="Name a new file")
    draft = path.with_name(f".filmroll-{secrets.token_hex(8)}")
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
        sync(path.absolute().parent)
    except OSError as error:
        if says_full(error):
            raise disk_full(error, "the archive", path) from error
        raise ArchiveError(f"the archive cannot be written: {error.strerror}", private=str(path)) from error
    finally:
        with suppress(OSError):
            draft.unlink()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file; it is opened without waiting, so that a FIFO cannot hang the caller."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ArchiveError(f"{path} is no regular file")
            yield file
    except OSError as error:
        raise ArchiveError(f"the archive cannot be read: {error.strerror}", private=str(path)) from error
