"""Files of processed images: levels, cut into patches, that a later process reads instead of decoding again.

Never needed: whatever is missing, stale, damaged or cannot be read or written is passed over and
counted, and the image is decoded. Written once, by a thread of their own, and verified at every read.
What they prove is that nothing has changed since they were written: whoever can write to the folder
can show other pixels for an image. docs/vllm.md says when they pay.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from filmroll.errors import (
    FilmrollError,
    FingerprintError,
    ImageNotFoundError,
    LayoutError,
    ReferenceFormatError,
)
from filmroll.families.base import Arrays, Family
from filmroll.image import ImageRef
from filmroll.materialize.watch import Watch
from filmroll.store.shelves.files import FileShelf
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.feature_reference import FeatureReference

KIND = "filmroll-levels"
SCHEMA_VERSION = 1
TTL_S = 7 * 86_400.0
MAX_FILE_BYTES = 256 * 2**20
SWEEP_S = 3600.0
"""How often a process looks for files that nobody has read for their time to live."""
WAITING = 16
"""Images that may wait to be written; more are not written."""
MADE_WITH = ("filmroll", "pillow", "simplejpeg", "isal", "numpy")
"""What makes levels: files of other versions are stale."""
SEND = "Send the mmraw: reference of the image"

_DTYPES = ("|u1", "<i4", "<i8", "<f4", "|b1")


class _Array(msgspec.Struct, array_like=True, frozen=True):
    dtype: str
    shape: list[int]
    data: memoryview


class _Envelope(msgspec.Struct, frozen=True):
    schema_version: int
    kind: str
    run_id: str
    fingerprint: str
    modality: str
    mm_hash: str
    placeholder_length: int
    payload_sha256: str
    versions: dict[str, str]
    payload: memoryview


class _Payload(msgspec.Struct, frozen=True):
    image: ImageRef
    """The stored image as it was verified."""
    arrays: dict[str, _Array]


_encoder = msgspec.msgpack.Encoder()
_read_envelope = msgspec.msgpack.Decoder(_Envelope)
_read_payload = msgspec.msgpack.Decoder(_Payload)


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file holds: an image as it was verified, and its levels, views of what was read."""

    image: ImageRef
    arrays: Arrays


class _StaleError(Exception):
    """The file is whole, and not for this reader."""


class Features:
    """The files of one model's images below `folder`. Thread-safe, and safe beside other processes.

    A file that nobody has read for `ttl_s` seconds is removed.
    """

    def __init__(self, folder: Path, family: Family, *, ttl_s: float = TTL_S) -> None:
        self.family = family
        self.versions = _versions()
        self.fingerprint = _fingerprint(family, self.versions)
        self.run_id = _run_id(folder.absolute())
        self._modality = family.vllm_modality or "image"
        self._outline = family.outline(family.layout(64, 64))
        self._ttl_s = ttl_s
        self.watch = Watch()
        self._shelf = FileShelf(folder)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="filmroll-features")
        self._lock = threading.Lock()
        self._waiting: set[Future[None]] = set()
        self._swept = -SWEEP_S

    def find(self, digest: str) -> Stored | None:
        """The levels of an image that was verified before; None where it has to be decoded."""
        try:
            found = self._read(digest)
        except FileNotFoundError:
            self.watch.features("absent")
        except _StaleError:
            self.watch.features("stale")
        except (msgspec.DecodeError, ValueError, RecursionError, LayoutError):
            self.watch.features("damaged")
        except FilmrollError:
            self.watch.features("failed")
        else:
            self.watch.features("hit")
            return found
        return None

    def keep(self, image: ImageRef, arrays: Arrays) -> None:
        """Have an image's levels written when there is time; what is there and is not these gives way."""
        with self._lock:
            if len(self._waiting) >= WAITING:
                self.watch.features("failed")
                return
            written = self._writer.submit(self._write, image, arrays)
            self._waiting.add(written)
        written.add_done_callback(self._waiting.discard)

    def described(self, reference: FeatureReference) -> ImageDescriptor:
        """The image that a reference to a file stands for, claims to be checked like any other's."""
        if reference.modality != self._modality:
            raise FingerprintError(
                f"its modality is {reference.modality!r}, the model's is {self._modality!r}", remedy=SEND
            )
        stored = self.find(reference.mm_hash) if reference.run_id == self.run_id else None
        if stored is None:
            raise ImageNotFoundError(
                f"there is no whole file of features of the image {reference.mm_hash}", remedy=SEND
            )
        return self.family.describe(stored.image)

    def reference(self, digest: str) -> FeatureReference:
        """How a request may name the file of an image."""
        return FeatureReference(self.run_id, self.fingerprint, self._modality, digest)

    def flush(self) -> None:
        """Wait until everything that was kept is written."""
        with self._lock:
            waiting = set(self._waiting)
        wait(waiting)

    def _read(self, digest: str) -> Stored:
        key = self._key(digest)
        read = _read_envelope.decode(self._shelf.read(key, MAX_FILE_BYTES))
        if hashlib.sha256(read.payload).hexdigest() != read.payload_sha256:
            raise ValueError("its payload is not what was written")
        payload = _read_payload.decode(read.payload)
        expected = self._about(payload.image)
        if any(getattr(read, name) != value for name, value in expected.items()) or payload.image.sha256 != digest:
            raise _StaleError
        arrays = {name: _array(form) for name, form in payload.arrays.items()}
        if {name: (array.dtype, array.ndim) for name, array in arrays.items()} != {
            name: (array.dtype, array.ndim) for name, array in self._outline.items()
        }:
            raise _StaleError
        self._shelf.touch(key)
        return Stored(payload.image, arrays)

    def _write(self, image: ImageRef, arrays: Arrays) -> None:
        try:
            self._sweep()
            payload = _encoder.encode(_Payload(image, {name: _form(array) for name, array in arrays.items()}))
            digest = hashlib.sha256(payload).hexdigest()
            envelope = _Envelope(**self._about(image), payload_sha256=digest, payload=memoryview(payload))
            self._shelf.replace(self._key(image.sha256), _encoder.encode(envelope))
        except (FilmrollError, OSError):
            self.watch.features("failed")
        else:
            self.watch.features("written")

    def _sweep(self) -> None:
        """Remove what nobody has read for long, of whichever version; other files of the folder are left alone."""
        if time.monotonic() - self._swept < SWEEP_S:
            return
        self._swept = time.monotonic()
        oldest = self._shelf.now() - self._ttl_s
        old = [item.key for item in self._shelf.items(_FOLDER) if item.modified < oldest]
        for key in old:
            self._shelf.delete(key)
        self.watch.features("swept", len(old))

    def _about(self, image: ImageRef) -> dict[str, Any]:
        """What an envelope says beside its payload."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "run_id": self.run_id,
            "fingerprint": self.fingerprint,
            "modality": self._modality,
            "mm_hash": image.sha256,
            "placeholder_length": self.family.layout(image.width, image.height).tokens,
            "versions": self.versions,
        }

    def _key(self, digest: str) -> str:
        return f"{_FOLDER}/{self.fingerprint}/{self._modality}/{digest[:2]}/{digest}.msgpack"


_FOLDER = f"v1/{KIND}"


def described(reference: FeatureReference, several: Sequence[Features | None]) -> ImageDescriptor:
    """The image that a reference stands for, in whichever of these folders it would be."""
    known = [features for features in several if features is not None]
    if not known:
        raise ReferenceFormatError("this engine was started without a folder of features", remedy=SEND)
    for features in known:
        if features.fingerprint == reference.fingerprint:
            return features.described(reference)
    raise FingerprintError(
        f"its fingerprint is {reference.fingerprint!r}, files of this engine have {known[0].fingerprint!r}: "
        "they are of another model, another recipe or other versions",
        remedy=SEND,
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in MADE_WITH:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def _fingerprint(family: Family, versions: dict[str, str]) -> str:
    made = ":".join([KIND, family.name, family.fingerprint, family.recipe, *(f"{k}={v}" for k, v in versions.items())])
    return hashlib.sha256(f"image-features:{made}".encode()).hexdigest()[:32]


def _run_id(folder: Path) -> str:
    """The run's, where the folder is `<run>/assets/mm_features`; else the folder's own name."""
    return folder.parents[1].name if folder.parts[-2:] == ("assets", "mm_features") else folder.name


def _form(array: np.ndarray[Any, Any]) -> _Array:
    return _Array(array.dtype.str, list(array.shape), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _array(form: _Array) -> np.ndarray[Any, Any]:
    """A read-only view; a copy where the elements might lie across their own size."""
    if form.dtype not in _DTYPES:
        raise ValueError(f"{form.dtype[:16]!r} is no type of an array here")
    if min(form.shape, default=0) < 0:
        raise ValueError("a side of an array is negative")
    array = np.frombuffer(form.data, form.dtype).reshape(form.shape)
    if array.itemsize > 1:
        array = array.copy()
    array.flags.writeable = False
    return array
