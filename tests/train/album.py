"""Steps of samples that show stored images, on the tiny model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from filmroll.families import Family
from filmroll.image import ImageRef
from filmroll.materialize import Materializer
from filmroll.store import Store, open_store
from filmroll.train.learning.trainer import Trainer
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.training import LossWeights, PlacedImage, TrainingSample


class CountingStore(Store):
    """Says how often each image was read."""

    reads: Counter[str]

    def read(self, ref: ImageRef) -> bytes:
        self.reads[ref.sha256] += 1
        return super().read(ref)


def counting_store(folder: Path) -> CountingStore:
    made = CountingStore(open_store(folder).shelf)
    made.reads = Counter()
    return made


def put(store: Store, family: Family, number: int, side: int = 64) -> ImageDescriptor:
    picture = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
    return family.describe(store.put(picture))


def showing(
    family: Family, name: str, images: Sequence[ImageDescriptor], weights: LossWeights | None = None
) -> TrainingSample:
    """A conversation of a turn for each image: the image, a question, an answer of four tokens."""
    ids: list[int] = [65, 66]
    trained: list[int] = [0, 0]
    placed = []
    for image in images:
        placed.append(PlacedImage(image, len(ids)))
        ids += [*family.expansion(image).tolist(), 67, 68, *[70 + len(name) % 5] * 4]
        trained += [0] * (len(ids) - len(trained) - 4) + [1] * 4
    count = len(ids)
    return TrainingSample(
        name=name,
        token_ids=np.array(ids, np.int32),
        trained=np.array(trained, np.uint8),
        logprobs=np.full(count, -6, np.float32),
        temperatures=np.ones(count, np.float32),
        versions=np.where(np.array(trained) > 0, 0, -1).astype(np.int32),
        advantage=1.0 if len(name) % 2 else -0.5,
        weights=weights or LossWeights(rl=1.0, cross_entropy=0.5),
        images=placed,
    )


def file_of(descriptor: ImageDescriptor) -> Path:
    return Path(descriptor.image.uri.removeprefix("file://"))


def lose(descriptor: ImageDescriptor) -> None:
    file_of(descriptor).unlink()


def damage(descriptor: ImageDescriptor) -> None:
    path = file_of(descriptor)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-7] + b"damaged")


def fresh(materializer: Materializer, cache_bytes: int = 0) -> Materializer:
    """One that has seen nothing yet."""
    return Materializer(materializer.store, materializer.family, cache_bytes=cache_bytes)


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.grad.detach().clone() for name, value in trainer.model.named_parameters()}
