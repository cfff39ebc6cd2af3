"""From descriptors to model inputs: nothing a descriptor claims is believed before it is checked.

The bytes are those of the digest (the store sees to that); everything else a descriptor says about
them is recomputed from the decoded picture and compared.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from filmroll.errors import FilmrollError, PlacementError
from filmroll.families.base import Arrays, Family
from filmroll.image import INLINE, ImageRef, inline_media_type
from filmroll.materialize.cache import Cache, CacheCounts
from filmroll.materialize.claims import check_kind, check_layout
from filmroll.materialize.features import Features
from filmroll.materialize.foreign import completed
from filmroll.materialize.sheet import Picture, owned
from filmroll.materialize.watch import Watch
from filmroll.pixels.decode import decoding
from filmroll.store.store import Store
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.foreign import ForeignDescriptor
from filmroll.wire.receipt import Receipt

CACHE_BYTES = 256 * 2**20
MAX_SEEN = 2**16
"""Images whose size is remembered longer than their pixels; each takes about a kilobyte."""


@dataclass(frozen=True, slots=True)
class Materialized:
    """The pictures of some descriptors, in order; one that occurs twice is the same object twice."""

    pictures: tuple[Picture, ...]
    receipt: Receipt
    """Its `consumed` is 0: whoever runs the model adds that."""
    family: Family

    @property
    def arrays(self) -> Arrays:
        """The arrays of all pictures as one `family.pixels` call gives them, in float32; {} for no pictures."""
        values = [self.family.normalized(picture.arrays) for picture in self.pictures]
        return owned(self.family.join(values)) if values else {}


@dataclass(frozen=True, slots=True)
class _Developed(Picture):
    """A picture with read-only arrays."""

    verified: ImageRef
    """The reference under which its bytes were verified, with the size that the picture has."""

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


class Materializer:
    """Loads images for one model. Thread-safe; images are kept decoded up to `cache_bytes`.

    Pictures are kept as levels, uint8 with one temporal copy: an eighth of their float32 values where a
    family has two. Whoever feeds a model with them normalizes them then, as `materialize.feed` does.

    `features` is where levels are found that another process has made.
    """

    def __init__(
        self,
        store: Store,
        family: Family,
        *,
        cache_bytes: int = CACHE_BYTES,
        features: Features | None = None,
    ) -> None:
        self.store = store
        self.family = family
        self.features = features
        self._watch = Watch()
        self._cache: Cache[tuple[str, str], _Developed] = Cache(cache_bytes)
        self._seen: dict[tuple[str, str], ImageRef] = {}
        self._seen_lock = threading.Lock()

    def complete(self, descriptor: ImageDescriptor | ForeignDescriptor) -> ImageDescriptor:
        """The same descriptor; of another system's, what the image that it names and the family say together."""
        return descriptor if isinstance(descriptor, ImageDescriptor) else completed(descriptor, self.store, self.family)

    def load(self, descriptors: Sequence[ImageDescriptor | ForeignDescriptor]) -> Materialized:
        """Every image verified, decoded and processed, in order; else the error, with the image's index."""
        pictures = []
        for index, claimed in enumerate(descriptors):
            try:
                pictures.append(self.begin(self.complete(claimed)).result())
            except FilmrollError as error:
                raise error.at(index=index) from error
        receipt = Receipt(referenced=len(descriptors), verified=len(pictures), decoded=len(pictures))
        return Materialized(tuple(pictures), receipt, self.family)

    def begin(self, descriptor: ImageDescriptor) -> Future[Picture]:
        """`load` of one image, for a thread that has other things to do than to wait for another's.

        The image is read and decoded now, unless another thread is at it: then it comes from there.
        """
        check_kind(descriptor, self.family)
        made = self._cache.begin(descriptor.identity, lambda: self._develop(descriptor), claim=descriptor.image)
        checked: Future[Picture] = Future()
        made.add_done_callback(lambda done: self._check(descriptor, done, checked))
        return checked

    def recall(self, descriptor: ImageDescriptor) -> bool:
        """Compare every claim with what was seen of the image before, without its pixels; False if it was not seen.

        For whoever keeps the pixels himself.
        """
        check_kind(descriptor, self.family)
        seen = self._seen.get(descriptor.identity)
        if seen is not None:
            self._compare(descriptor, seen)
        return seen is not None

    def report_to(self, watch: Watch) -> None:
        """Tell this one what happens from now on."""
        self._watch = self._cache.watch = watch
        if self.features is not None:
            self.features.watch = watch

    def cache_counts(self) -> CacheCounts:
        return self._cache.counts()

    def _check(self, descriptor: ImageDescriptor, made: Future[_Developed], checked: Future[Picture]) -> None:
        try:
            developed = made.result()
            self._compare(descriptor, developed.verified)
        # Whatever it is, an interrupt too, whoever waits must learn of it.
        except BaseException as error:  # noqa: BLE001
            checked.set_exception(error)
        else:
            checked.set_result(developed)

    def _compare(self, descriptor: ImageDescriptor, verified: ImageRef) -> None:
        if verified != descriptor.image:
            # Same digest, but another location, type or length is claimed: the claim is the store's to judge.
            self.store.read(descriptor.image)
        check_layout(descriptor, self.family, verified.width, verified.height)

    def _develop(self, descriptor: ImageDescriptor) -> _Developed:
        stored = None if self.features is None else self.features.find(descriptor.image.sha256)
        if stored is not None:
            return self._developed(descriptor, stored.image, stored.arrays)
        began = time.perf_counter()
        data = self.store.read(descriptor.image)
        read = time.perf_counter()
        self._watch.read(len(data), read - began)
        with decoding(data, max_pixels=self.store.limits.max_pixels) as rgb:
            height, width, _ = rgb.shape
            made = self.family.pixels([rgb], "uint8")
            # A family may hand on the picture itself.
            arrays = {name: array.copy() if np.may_share_memory(array, rgb) else array for name, array in made.items()}
        for array in arrays.values():
            array.flags.writeable = False
        self._watch.decoded(time.perf_counter() - read)
        verified = msgspec.structs.replace(_place(descriptor.image), width=width, height=height)
        if self.features is not None:
            self.features.keep(verified, arrays)
        return self._developed(descriptor, verified, arrays)

    def _developed(self, descriptor: ImageDescriptor, verified: ImageRef, arrays: Arrays) -> _Developed:
        self._remember(descriptor.identity, verified)
        features = self.family.layout(verified.width, verified.height).features
        return _Developed(descriptor.identity, features, arrays, verified)

    def _remember(self, identity: tuple[str, str], verified: ImageRef) -> None:
        with self._seen_lock:
            self._seen[identity] = verified
            if len(self._seen) > MAX_SEEN:
                del self._seen[next(iter(self._seen))]


def _place(image: ImageRef) -> ImageRef:
    """The reference, less an image inside it, which would be kept as long: that one is read again to be verified."""
    return image if inline_media_type(image.uri) is None else msgspec.structs.replace(image, uri=INLINE)


def check_placements(
    token_ids: Sequence[int] | np.ndarray[Any, Any],
    offsets: Sequence[int],
    descriptors: Sequence[ImageDescriptor],
    family: Family,
) -> None:
    """Image i's tokens fill [offsets[i], offsets[i] + tokens), in order, and no other token takes a feature."""
    if len(offsets) != len(descriptors):
        raise PlacementError(
            f"{len(descriptors)} images have {len(offsets)} placements", remedy="Give each image one offset"
        )
    tokens = np.asarray(token_ids, dtype=np.int64)
    is_placeholder = tokens == family.placeholders.image
    end = 0
    for index, (offset, descriptor) in enumerate(zip(offsets, descriptors, strict=True)):
        if offset < end:
            raise PlacementError(
                f"its placeholder begins at token {offset}, before the end of what precedes it, {end}",
                remedy="Placements follow each other in the order of the images",
                index=index,
            )
        _check_unclaimed(is_placeholder[end:offset], end)
        end = offset + descriptor.tokens
        if end > len(tokens) or not np.array_equal(tokens[offset:end], family.expansion(descriptor)):
            raise PlacementError(
                f"tokens {offset} to {end} of {len(tokens)} are not the placeholder of this image",
                remedy=f"The image takes {descriptor.tokens} tokens; expand its one pad to these",
                index=index,
            )
    _check_unclaimed(is_placeholder[end:], end)


def _check_unclaimed(is_placeholder: np.ndarray[Any, Any], start: int) -> None:
    stray = np.flatnonzero(is_placeholder)
    if stray.size:
        raise PlacementError(
            f"token {start + int(stray[0])} is an image placeholder that belongs to no image",
            remedy="Send a reference and a placement for every image in the prompt",
        )
