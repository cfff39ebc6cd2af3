"""From a micro-batch to tensors: the trainer's side of materializing.

N = trained tokens of all rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from filmroll.errors import FilmrollError, MessageError, TrainingError
from filmroll.materialize.carried import Carried
from filmroll.materialize.materializer import check_placements
from filmroll.materialize.sheet import Sheet
from filmroll.train.loading.album import Album, Developed, Images
from filmroll.train.loading.places import of_sample
from filmroll.train.loading.prefetch import Prefetch
from filmroll.train.loading.rows import row_inputs, starts
from filmroll.train.loading.targets import Targets
from filmroll.train.step import MissingImage, TrainerConfig, TrainStep
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.receipt import Receipt
from filmroll.wire.training import MicroBatch, check_sample

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """Model inputs of packed rows, and for each of the N trained tokens where it stands and what it is worth."""

    inputs: dict[str, torch.Tensor]
    sheet: Sheet
    rows: torch.Tensor
    columns: torch.Tensor
    owners: torch.Tensor
    """Which of the micro-batch's samples it belongs to."""
    token_ids: torch.Tensor
    logprobs: torch.Tensor
    temperatures: torch.Tensor
    versions: torch.Tensor
    advantages: torch.Tensor
    rl_weights: torch.Tensor
    cross_entropy_weights: torch.Tensor
    kl_weights: torch.Tensor
    samples: int
    held: bool
    """Whether there is a token that is held to a reference policy."""
    receipt: Receipt
    missing: tuple[MissingImage, ...] = ()
    masked: int = 0
    """Samples that count in no loss, because an image of theirs is missing."""
    image_wait: float = 0.0
    """Seconds that it took until the images were there."""


class Loader:
    """Checks samples, has their images, and lays rows and targets out as tensors.

    `may_miss` is the share of a step's samples that may do without an image of theirs, and without weight.
    """

    def __init__(
        self, images: Images, model: Any, config: TrainerConfig | None = None, *, may_miss: float = 0.0
    ) -> None:
        self._images = images
        self._album = Album(images, may_miss)
        self._model = model
        self._config = config or TrainerConfig()

    @contextmanager
    def batches(self, work: TrainStep, samples: int) -> Iterator[Iterator[tuple[MicroBatch, Batch]]]:
        """The step's micro-batches, each made ready when it is asked for; the next ones' images are made meanwhile.

        The step has so many `samples` to learn from, with those of other ranks.
        """
        self.begin(work, samples)
        ahead = Prefetch(
            self._album.picture,
            self._weight,
            [[image.descriptor for image in micro_batch.images] for micro_batch in work.micro_batches],
            limit=self._config.prefetch_mb << 20,
            threads=self._config.readers,
        )
        with closing(ahead):
            yield self._ready(work.micro_batches, ahead)

    def _ready(self, micro_batches: Sequence[MicroBatch], ahead: Prefetch) -> Iterator[tuple[MicroBatch, Batch]]:
        for turn, micro_batch in enumerate(micro_batches):
            yield micro_batch, self.load(micro_batch, waited=ahead.reach(turn))

    def _weight(self, descriptor: ImageDescriptor) -> int:
        # A size that the family has no layout for is an error when its micro-batch is loaded.
        with suppress(FilmrollError):
            return self._images.family.level_bytes(descriptor.image)
        return 0

    def begin(self, work: TrainStep, samples: int) -> None:
        """Take in what the step carries beside its samples: their images' arrays in mode processed, else nothing."""
        self._album.begin(samples)
        if isinstance(self._images, Carried):
            shown = {image.descriptor.identity for batch in work.micro_batches for image in batch.images}
            told = {image.identity for image in work.images} | {image.identity for image in work.lost}
            if unused := sorted(told - shown):
                digest, _recipe = unused[0]
                raise MessageError(f"the step carries the arrays of {digest[:16]}, which none of its samples shows")
            self._images.begin(work.images, work.lost)
        elif work.images or work.lost:
            raise MessageError(
                f"the step carries the arrays of {len(work.images)} images, and this run is raw",
                remedy='Send references, or set multimodal.mode to "processed" for the whole run',
            )

    def load(self, micro_batch: MicroBatch, *, waited: float = 0.0) -> Batch:
        """The micro-batch ready for a forward; an image that cannot be verified is an error, or masks its sample.

        `waited` are the seconds that its images have taken already.
        """
        self._check(micro_batch)
        began = time.perf_counter()
        developed = self._album.develop(micro_batch)
        return self._laid_out(developed, waited + time.perf_counter() - began)

    def _check(self, micro_batch: MicroBatch) -> None:
        """An error for samples that say what cannot be, and for images that stand where they cannot."""
        if not micro_batch.rows or not all(row and all(one.tokens for one in row) for row in micro_batch.rows):
            raise TrainingError("a micro-batch has no rows, an empty row or an empty sample", field="rows")
        for sample in micro_batch.samples:
            with of_sample(sample):
                check_sample(sample)
                offsets = [image.offset for image in sample.images]
                descriptors = [image.descriptor for image in sample.images]
                check_placements(sample.token_ids, offsets, descriptors, self._images.family)

    def _laid_out(self, developed: Developed, waited: float) -> Batch:
        micro_batch = developed.micro_batch
        sheet = Sheet.of(developed.pictures)
        inputs = row_inputs(self._model, self._images.family, micro_batch.rows, sheet)
        samples, weights = micro_batch.samples, [sample.weights for sample in micro_batch.samples]
        targets = Targets(samples, inputs["input_ids"].device)
        rows, columns = zip(*starts(micro_batch.rows), strict=True)
        return Batch(
            inputs=inputs,
            sheet=sheet,
            rows=targets.spread(rows),
            columns=targets.spread(columns) + targets.places,
            owners=targets.spread(range(len(samples))),
            token_ids=targets.gathered("token_ids").long(),
            logprobs=targets.gathered("logprobs"),
            temperatures=targets.gathered("temperatures"),
            versions=targets.gathered("versions"),
            advantages=targets.spread([sample.advantage for sample in samples], np.float32),
            rl_weights=targets.spread([one.rl for one in weights], np.float32),
            cross_entropy_weights=targets.spread([one.cross_entropy for one in weights], np.float32),
            kl_weights=targets.spread([one.kl for one in weights], np.float32),
            samples=len(samples),
            held=any(sample.weights.kl > 0 and len(sample.targets) > 0 for sample in samples),
            receipt=developed.receipt,
            missing=developed.missing,
            masked=developed.masked,
            image_wait=waited,
        )
