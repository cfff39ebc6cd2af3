"""Images whose arrays came with a message: for a reader that has no access to the store.

Whoever sent them has verified the bytes and developed them; here everything is checked that can be told
without the picture: what is fed to a model is whole, belongs to the image, and differs from what its
family makes of a picture of that size in levels alone. Whose picture those show, the sender is trusted with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from filmroll.errors import FilmrollError, GridError, MessageError, StoreError
from filmroll.families.base import Arrays, Family
from filmroll.materialize.claims import check_kind, check_layout
from filmroll.materialize.materializer import Materialized
from filmroll.materialize.sheet import Picture
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.processed import LostImage, ProcessedImage
from filmroll.wire.receipt import Receipt

SEND = "Send what filmroll.train.loading.processed makes of the stored image"


class Carried:
    """Gives what a Materializer gives, of the images that the message at hand carries."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._images: dict[tuple[str, str], ProcessedImage] = {}
        self._lost: dict[tuple[str, str], LostImage] = {}
        self._whole: dict[tuple[str, str], Picture] = {}

    def begin(self, images: Sequence[ProcessedImage], lost: Sequence[LostImage] = ()) -> None:
        """From now on there are these images, and none of those that came before; each comes once, or is lost."""
        self._images = {image.identity: image for image in images}
        self._lost = {image.identity: image for image in lost}
        self._whole = {}
        distinct = len(self._images | self._lost)
        if distinct < len(images) + len(lost):
            raise MessageError(
                f"the message carries the arrays of {distinct} images in {len(images) + len(lost)} places",
                remedy="A distinct image travels once",
            )

    def load(self, descriptors: Sequence[ImageDescriptor]) -> Materialized:
        """Every image's picture, in order; else the error, with the image's index.

        A lost one is a StoreError that says what its sender met. Verified is an image whose arrays are those
        that were made of it, by their checksum; decoded one whose arrays are, but for the levels, those that the
        model's family makes of a picture of its size.
        """
        pictures = []
        for index, descriptor in enumerate(descriptors):
            try:
                pictures.append(self._picture(descriptor))
            except FilmrollError as error:
                raise error.at(index=index) from error
        receipt = Receipt(referenced=len(descriptors), verified=len(pictures), decoded=len(pictures))
        return Materialized(tuple(pictures), receipt, self.family)

    def _picture(self, descriptor: ImageDescriptor) -> Picture:
        """The claims are compared at every use, the arrays at the first."""
        check_kind(descriptor, self.family)
        check_layout(descriptor, self.family, descriptor.image.width, descriptor.image.height)
        if descriptor.identity not in self._whole:
            self._whole[descriptor.identity] = self._checked(descriptor)
        return self._whole[descriptor.identity]

    def _checked(self, descriptor: ImageDescriptor) -> Picture:
        if (lost := self._lost.get(descriptor.identity)) is not None:
            raise StoreError(lost.reason)
        image = self._images.get(descriptor.identity)
        if image is None:
            raise MessageError("its arrays did not come with the samples", remedy=SEND)
        layout = self.family.layout(descriptor.image.width, descriptor.image.height)
        _check_arrays(image.arrays, self.family.forward.taken(self.family.outline(layout)))
        if not image.is_whole:
            raise MessageError(
                "its arrays are not those that were made of it: their checksum differs",
                remedy="They were damaged, or belong to another image",
            )
        return Picture(descriptor.identity, layout.features, image.arrays)


def _check_arrays(arrays: Arrays, outline: Arrays) -> None:
    """They are what the family makes of a picture with this outline: all that can be told without its pixels."""
    if arrays.keys() != outline.keys():
        raise MessageError(
            f"its arrays are {_names(arrays)}, the model's family makes {_names(outline)}",
            remedy=SEND,
        )
    for name, like in outline.items():
        array = arrays[name]
        if (array.dtype, array.shape) != (like.dtype, like.shape):
            raise MessageError(
                f"its {name} are {array.dtype} of shape {array.shape}, "
                f"the model's family makes {like.dtype} of shape {like.shape}",
                remedy=SEND,
            )
        if like.dtype != np.uint8 and not np.array_equal(array, like):
            raise GridError(
                f"its {name} are {_beginning(array)}, those of a picture of its size are {_beginning(like)}",
                remedy=SEND,
            )


def _names(arrays: Arrays) -> str:
    return ", ".join(sorted(arrays)[:16]) or "none"


def _beginning(array: npt.NDArray[Any]) -> str:
    return str(array.tolist())[:128]
