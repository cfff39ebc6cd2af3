"""Mode processed: a step takes its images along, for a trainer that has no access to the store.

On the sender's side: no torch.
"""

from __future__ import annotations

import msgspec

from filmroll.errors import FilmrollError
from filmroll.materialize.materializer import Materializer
from filmroll.train.places import of_sample
from filmroll.train.step import TrainStep
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.processed import ProcessedImage


def with_images(work: TrainStep, materializer: Materializer) -> TrainStep:
    """The same step with the verified arrays of its images, each distinct image once.

    An image that cannot be had is an error that names the sample, its branch, the turn and the image.
    """
    made: dict[tuple[str, str], ProcessedImage] = {}
    for batch in work.micro_batches:
        for sample in batch.samples:
            for index, image in enumerate(sample.images):
                if image.descriptor.identity not in made:
                    with of_sample(sample):
                        made[image.descriptor.identity] = _processed(image.descriptor, index, materializer)
    return msgspec.structs.replace(work, images=list(made.values()))


def _processed(descriptor: ImageDescriptor, index: int, materializer: Materializer) -> ProcessedImage:
    try:
        (picture,) = materializer.load([descriptor]).pictures
    except FilmrollError as error:
        raise error.at(index=index) from error.__cause__
    return ProcessedImage.of(picture.identity, picture.arrays)
