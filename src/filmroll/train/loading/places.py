"""Where an image of a step is, for errors: its sample, and with it its branch; its turn; its number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from filmroll.errors import FilmrollError, ReceiptError
from filmroll.wire.training import MicroBatch, TrainingSample

_NAMED = 4
"""Images that an error names where it cannot be told which of them it is about."""


@contextmanager
def of_sample(sample: TrainingSample) -> Iterator[None]:
    """An error inside is about this sample, and its index is the number of one of its images."""
    try:
        yield
    except FilmrollError as error:
        where = f"sample {sample.name}" if error.index is None else place(sample, error.index)
        raise error.about(where) from error.__cause__


@contextmanager
def of_micro_batch(micro_batch: MicroBatch) -> Iterator[None]:
    """An error inside is about an image of these samples, counted through all of them, or about them all."""
    try:
        yield
    except FilmrollError as error:
        places = [(sample, index) for sample in micro_batch.samples for index in range(len(sample.images))]
        if error.index is not None and error.index < len(places):
            sample, index = places[error.index]
            raise error.about(place(sample, index)).at(index=index) from error.__cause__
        if not isinstance(error, ReceiptError):
            raise
        named = "; ".join(f"{place(sample, index)}, image {index}" for sample, index in places[:_NAMED])
        more = f"; and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
        raise error.about(f"one of {len(places)} images ({named}{more})") from error.__cause__


def place(sample: TrainingSample, index: int) -> str:
    """The sample, whose name ends in its branch, and the turn in which the image is shown."""
    if index >= len(sample.images):
        return f"sample {sample.name}"
    return f"sample {sample.name}, turn {turn(sample, index)}"


def turn(sample: TrainingSample, index: int) -> int:
    """A turn ends with what was sampled, so as many turns as there are answers come before the image's."""
    before = slice(0, sample.images[index].offset)
    sampled = (sample.trained[before] != 0) | (sample.versions[before] != -1)
    return int(np.count_nonzero(np.diff(sampled.astype(np.int8), prepend=0) == 1))
