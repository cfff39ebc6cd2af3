"""Samples as hypothesis draws them: of any length, with images of any size anywhere, some shown again."""

import msgspec
import numpy as np
from hypothesis import strategies as st

from filmroll.image import ImageRef
from filmroll.wire.training import LossWeights, PlacedImage, TrainingSample
from tests.train.conftest import FAMILY, PAD, sample

SIDES = (224, 168, 112, 56)
"""Of square images: 256, 144, 64 and 16 patches of 14x14, a quarter as many tokens."""


def image(number: int, side: int):
    digest = f"{number:064x}"
    return FAMILY.describe(ImageRef(f"file:///s/{digest}.png", digest, "image/png", side, side, 100))


def patches(descriptor) -> int:
    """By hand: what the grid in the descriptor says."""
    return int(np.prod(descriptor.payload["image_grid_thw"]))


def distinct(samples) -> int:
    return sum({one.descriptor.identity: patches(one.descriptor) for each in samples for one in each.images}.values())


def showing(tokens: int, *images: PlacedImage) -> TrainingSample:
    """A sample with these images."""
    made = sample(tokens, [(one.offset, one.length) for one in images])
    return msgspec.structs.replace(made, images=list(images))


@st.composite
def training_samples(draw, *, most: int = 30) -> list[TrainingSample]:
    album = [image(number, draw(st.sampled_from(SIDES))) for number in range(draw(st.integers(4, 8)))]
    return [_sample(draw, str(number), album) for number in range(draw(st.integers(0, most)))]


def _sample(draw, name, album) -> TrainingSample:
    chosen = draw(st.lists(st.sampled_from(album), max_size=3))
    texts = draw(st.lists(st.integers(0, 40), min_size=len(chosen) + 1, max_size=len(chosen) + 1))
    ids, images = [1] * max(1, texts[0]), []
    for descriptor, text in zip(chosen, texts[1:], strict=True):
        images.append(PlacedImage(descriptor, len(ids)))
        ids += [PAD] * descriptor.tokens + [2] * text
    token_ids = np.array(ids, np.int32)
    trained = (token_ids == 2) | ((token_ids == 1) & draw(st.booleans()))
    return TrainingSample(
        name=name,
        token_ids=token_ids,
        trained=trained.astype(np.uint8),
        logprobs=np.arange(len(ids), dtype=np.float32),
        temperatures=np.ones(len(ids), np.float32),
        versions=np.zeros(len(ids), np.int32),
        advantage=1.0,
        weights=LossWeights(rl=1.0, cross_entropy=0.5),
        images=images,
    )
