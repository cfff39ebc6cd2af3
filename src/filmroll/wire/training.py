"""What a trainer is sent: samples of expanded tokens with references to their images."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from filmroll.errors import TrainingError
from filmroll.wire.arrays import Flags, Floats, Ints
from filmroll.wire.descriptor import ImageDescriptor


class PlacedImage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An image and where its placeholder tokens stand among a sample's expanded tokens."""

    descriptor: ImageDescriptor
    offset: int

    @property
    def length(self) -> int:
        return self.descriptor.tokens

    @property
    def end(self) -> int:
        """The first token after the placeholder."""
        return self.offset + self.length


class LossWeights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How strongly a sample counts in each loss stream."""

    rl: float = 0.0
    cross_entropy: float = 0.0
    kl: float = 0.0
    """Of the divergence from the reference policy."""

    @property
    def any(self) -> bool:
        """Whether the sample counts in any stream."""
        return any((self.rl, self.cross_entropy, self.kl))


class TrainingSample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One branch of a trajectory, T expanded tokens long. Every array has length T.

    `trained` is 1 where the token was sampled and counts in the loss; `logprobs` is what the engine
    reported for it, under `temperatures`; `versions` is the policy version that sampled it, -1
    elsewhere.
    """

    name: str
    token_ids: Ints
    trained: Flags
    logprobs: Floats
    temperatures: Floats
    versions: Ints
    advantage: float
    weights: LossWeights
    images: list[PlacedImage] = []

    @property
    def tokens(self) -> int:
        return len(self.token_ids)

    @property
    def targets(self) -> npt.NDArray[np.intp]:
        """Where the tokens stand that count in a loss: none of a sample without weight.

        A token at the beginning has nothing before it that could predict it.
        """
        return np.flatnonzero(self.trained[1:]) + 1 if self.weights.any else np.empty(0, np.intp)


class MicroBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows that go through the model together, each of samples one behind another."""

    rows: list[list[TrainingSample]]

    @property
    def samples(self) -> list[TrainingSample]:
        """Row by row."""
        return [sample for row in self.rows for sample in row]

    @property
    def images(self) -> list[PlacedImage]:
        """Those of all samples, in their order."""
        return [image for sample in self.samples for image in sample.images]

    @property
    def area(self) -> int:
        """Rows times the longest row: tokens and padding."""
        return len(self.rows) * max(sum(sample.tokens for sample in row) for row in self.rows)


SAMPLE_ARRAYS: tuple[tuple[str, np.dtype[Any]], ...] = (
    ("token_ids", np.dtype("<i4")),
    ("trained", np.dtype("u1")),
    ("logprobs", np.dtype("<f4")),
    ("temperatures", np.dtype("<f4")),
    ("versions", np.dtype("<i4")),
)


def check_sample(sample: TrainingSample) -> TrainingSample:
    """The same sample if its parts agree: array types and lengths, images inside and in order."""
    for name, dtype in SAMPLE_ARRAYS:
        array = getattr(sample, name)
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != (sample.tokens,):
            raise TrainingError(f"sample {sample.name}: {name} is not {sample.tokens} values of {dtype}", field=name)
    end = 0
    for index, image in enumerate(sample.images):
        if image.offset < end or image.end > sample.tokens:
            raise TrainingError(
                f"sample {sample.name}: placeholder at {image.offset}, {image.length} long, of {sample.tokens} tokens, "
                f"the one before it ends at {end}",
                field="images",
                index=index,
            )
        end = image.end
    return sample
