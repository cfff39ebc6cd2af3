"""Images whose arrays came with a message: for a reader that has no access to the store.

Whoever sent them has verified the bytes and developed them; here everything is checked that can be told
without the picture, so what is fed to a model is whole, has the right shape and belongs to the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from filmroll.errors import FilmrollError, GridError, MessageError, StoreError, TrainingError
from filmroll.families.base import Arrays, Family
from filmroll.materialize.claims import check_kind, check_layout
from filmroll.materialize.materializer import Materialized
from filmroll.materialize.sheet import Picture
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.processed import LostImage, ProcessedImage
from filmroll.wire.receipt import Receipt

SEND = "Send what filmroll.train.loading.processed makes of the stored image"
_SAMPLE = np.zeros((64, 64, 3), np.uint8)


class Carried:
    """Gives what a Materializer gives, of the images that the message at hand carries."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._grid = family.forward.grid
        if self._grid is None:
            raise TrainingError(
                f"arrays of the family {family.name!r} have no grid by which they could be checked",
                remedy='Set multimodal.mode to "raw" or "inline"',
            )
        self._outline = family.pixels([_SAMPLE], "uint8")
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
        that were made of it, by their checksum; decoded one whose arrays have the names, types and shapes that
        the model's family makes.
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
        if image.arrays.keys() != self._outline.keys():
            raise MessageError(
                f"its arrays are {', '.join(sorted(image.arrays)) or 'none'}, "
                f"the model's family makes {', '.join(sorted(self._outline))}",
                remedy=SEND,
            )
        for name, array in image.arrays.items():
            rows = 1 if name == self._grid else int(np.prod(layout.grid))
            like = self._outline[name]
            if array.dtype != like.dtype or array.shape != (rows, *like.shape[1:]):
                raise MessageError(
                    f"its {name} are {array.dtype} of shape {array.shape}, "
                    f"the model's family makes {like.dtype} of shape {(rows, *like.shape[1:])}",
                    remedy=SEND,
                )
        grid = _grid(image.arrays, self._grid)
        if grid != layout.grid:
            raise GridError(f"its arrays have the grid {grid}, its placeholder was made for {layout.grid}", remedy=SEND)
        if not image.is_whole:
            raise MessageError(
                "its arrays are not those that were made of it: their checksum differs",
                remedy="They were damaged, or belong to another image",
            )
        return Picture(descriptor.identity, layout.features, image.arrays)


def _grid(arrays: Arrays, name: str | None) -> tuple[int, ...]:
    return tuple(arrays[name or ""][0].tolist())
