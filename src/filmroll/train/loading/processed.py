"""Mode processed: a step takes its images along, for a trainer that has no access to the store.

On the sender's side: no torch.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec

from filmroll.errors import FilmrollError
from filmroll.materialize.materializer import Materializer
from filmroll.train.loading.album import UNHAD
from filmroll.train.loading.places import of_sample
from filmroll.train.step import TrainStep
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.processed import LostImage, ProcessedImage
from filmroll.wire.training import TrainingSample


def with_images(work: TrainStep, materializer: Materializer, *, may_miss: bool = False, threads: int = 1) -> TrainStep:
    """The same step with the verified arrays of its images, each distinct image once, made by so many threads.

    An image that cannot be had is an error that names the sample, its branch, the turn and the image; with
    `may_miss` it is said to be lost, and the trainer masks the samples that show it.
    """
    places: dict[tuple[str, str], tuple[TrainingSample, int]] = {}
    for batch in work.micro_batches:
        for sample in batch.samples:
            for index, image in enumerate(sample.images):
                places.setdefault(image.descriptor.identity, (sample, index))

    def make(place: tuple[TrainingSample, int]) -> ProcessedImage | LostImage:
        sample, index = place
        with of_sample(sample):
            return _processed(sample.images[index].descriptor, index, materializer, may_miss)

    with ThreadPoolExecutor(threads, "filmroll-images") as pool:
        # In their order, whoever is first ready; after an error no other is begun.
        made = list(pool.map(make, places.values()))
    return msgspec.structs.replace(
        work,
        images=[one for one in made if isinstance(one, ProcessedImage)],
        lost=[one for one in made if isinstance(one, LostImage)],
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
    return ProcessedImage.of(picture.identity, materializer.family.forward.taken(picture.arrays))
