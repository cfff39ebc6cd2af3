"""The pictures of a micro-batch; where one cannot be had, the run's policy, and what stands in for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from filmroll.errors import FilmrollError, ImageError, StoreError, TrainingError
from filmroll.families.base import Family
from filmroll.image import ImageRef
from filmroll.materialize.carried import Carried
from filmroll.materialize.claims import check_kind, check_layout
from filmroll.materialize.materializer import Materializer
from filmroll.materialize.sheet import Picture
from filmroll.store import Limits
from filmroll.train.loading.places import of_sample, turn
from filmroll.train.step import MissingImage
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.receipt import Receipt
from filmroll.wire.training import LossWeights, MicroBatch, TrainingSample

Images = Materializer | Carried
"""Where a trainer's images come from: the store, or the messages that bring the samples."""

UNHAD = (StoreError, ImageError)
"""What is said of an image that is gone, damaged or out of reach. A reference that lies is something else."""

GREY = 128


@dataclass(frozen=True, slots=True)
class Developed:
    """A micro-batch and all its pictures. Samples that miss one have lost their weight."""

    micro_batch: MicroBatch
    pictures: tuple[Picture, ...]
    receipt: Receipt
    missing: tuple[MissingImage, ...]
    masked: int
    """How many samples would have counted in a loss, and do not."""


class Album:
    """Gives the pictures of samples. `may_miss` is the share of a step's samples that may do without theirs."""

    def __init__(self, images: Images, may_miss: float = 0.0) -> None:
        self._images = images
        self._may_miss = may_miss
        self._begun = self._masked = 0
        self._gone: dict[tuple[tuple[str, str], ImageRef], FilmrollError] = {}

    def begin(self, samples: int) -> None:
        """From now on a step is counted, of which so many samples are to be learnt from, by all ranks together."""
        self._begun, self._masked = samples, 0
        self._gone = {}

    def develop(self, micro_batch: MicroBatch) -> Developed:
        """Every picture verified, in order; else the error, with the image's place, or a sample that is masked."""
        pictures: list[Picture] = []
        missing: list[MissingImage] = []
        masked = 0
        rows: list[list[TrainingSample]] = []
        for row in micro_batch.rows:
            rows.append([])
            for sample in row:
                shown, gone = self._of_sample(sample)
                pictures += shown
                missing += gone
                masked += bool(gone) and len(sample.targets) > 0
                rows[-1].append(msgspec.structs.replace(sample, weights=LossWeights()) if gone else sample)
        self._count(masked, missing)
        verified = len(pictures) - len(missing)
        receipt = Receipt(len(pictures), verified, verified, missing=len(missing))
        return Developed(MicroBatch(rows), tuple(pictures), receipt, tuple(missing), masked)

    def picture(self, descriptor: ImageDescriptor) -> Picture:
        """One image, verified, and every claim about it compared.

        What cannot be had stays so for the step, and for the same reason: rollouts of a group do not look again.
        """
        key = (descriptor.identity, descriptor.image)
        if (known := self._gone.get(key)) is not None:
            raise known.at()
        try:
            return self._images.load([descriptor]).pictures[0]
        except UNHAD as error:
            # Another one, that holds no frames and what was in them.
            self._gone[key] = error.at()
            raise

    def _of_sample(self, sample: TrainingSample) -> tuple[list[Picture], list[MissingImage]]:
        pictures, missing = [], []
        with of_sample(sample):
            for index, image in enumerate(sample.images):
                try:
                    pictures.append(self.picture(image.descriptor))
                except FilmrollError as error:
                    if not self._may_miss or not isinstance(error, UNHAD):
                        raise error.at(index=index) from error
                    pictures.append(stand_in(image.descriptor, self._images.family))
                    digest = image.descriptor.image.sha256
                    missing.append(MissingImage(sample.name, turn(sample, index), index, digest, error.problem))
        return pictures, missing

    def _count(self, masked: int, missing: Sequence[MissingImage]) -> None:
        self._masked += masked
        check_share(self._masked, self._begun, self._may_miss, missing)


def check_share(masked: int, samples: int, may_miss: float, missing: Sequence[MissingImage]) -> None:
    """TrainingError where more of a step's samples than that share are masked."""
    if masked > may_miss * samples:
        first = missing[0]
        raise TrainingError(
            f"{masked} of {samples} samples of the step show images that cannot be had, more than the "
            f"share of {may_miss:g} that may; one is image {first.image} of sample {first.sample}, "
            f"turn {first.turn}: {first.reason}",
            remedy="Mend the store, or raise multimodal.missing_share",
        )


def stand_in(descriptor: ImageDescriptor, family: Family) -> Picture:
    """A grey picture of the size that an image is said to have: same grid, same tokens, and in no cache.

    Its identity is no image's, so nothing takes it for the one that it stands in for.
    """
    width, height = descriptor.image.width, descriptor.image.height
    check_kind(descriptor, family)
    check_layout(descriptor, family, width, height)
    Limits().check_size(width, height)
    arrays = family.pixels([np.full((height, width, 3), GREY, np.uint8)], "uint8")
    return Picture((f"grey {width}x{height}", descriptor.recipe), family.layout(width, height).features, arrays)
