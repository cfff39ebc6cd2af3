"""Mode processed: a step takes its images along, for a trainer that has no access to the store.

On the sender's side: no torch.
"""

from __future__ import annotations

import msgspec

from filmroll.errors import FilmrollError
from filmroll.materialize.materializer import Materializer
from filmroll.train.loading.album import UNHAD
from filmroll.train.loading.places import of_sample
from filmroll.train.step import TrainStep
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.processed import LostImage, ProcessedImage


def with_images(work: TrainStep, materializer: Materializer, *, may_miss: bool = False) -> TrainStep:
    """The same step with the verified arrays of its images, each distinct image once.

    An image that cannot be had is an error that names the sample, its branch, the turn and the image; with
    `may_miss` it is said to be lost, and the trainer masks the samples that show it.
    """
    made: dict[tuple[str, str], ProcessedImage | LostImage] = {}
    for batch in work.micro_batches:
        for sample in batch.samples:
            for index, image in enumerate(sample.images):
                if image.descriptor.identity not in made:
                    with of_sample(sample):
                        made[image.descriptor.identity] = _processed(image.descriptor, index, materializer, may_miss)
    return msgspec.structs.replace(
        work,
        images=[one for one in made.values() if isinstance(one, ProcessedImage)],
        lost=[one for one in made.values() if isinstance(one, LostImage)],
    )


def _processed(
    descriptor: ImageDescriptor, index: int, materializer: Materializer, may_miss: bool
) -> ProcessedImage | LostImage:
    try:
        (picture,) = materializer.load([descriptor]).pictures
    except FilmrollError as error:
        if may_miss and isinstance(error, UNHAD):
            return LostImage(*descriptor.identity, error.problem)
        raise error.at(index=index) from error.__cause__
    return ProcessedImage.of(picture.identity, picture.arrays)
