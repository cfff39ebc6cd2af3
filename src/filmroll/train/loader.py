"""From a micro-batch to tensors: the trainer's side of materializing.

N = trained tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from filmroll.errors import MessageError, TrainingError
from filmroll.materialize.carried import Carried
from filmroll.materialize.materializer import Materializer, check_placements
from filmroll.materialize.sheet import Sheet
from filmroll.train.places import of_micro_batch, of_sample
from filmroll.train.rows import row_inputs, starts
from filmroll.train.step import TrainStep
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
    receipt: Receipt


Images = Materializer | Carried
"""Where a trainer's images come from: the store, or the messages that bring the samples."""


class Loader:
    """Checks samples, has their images, and lays rows and targets out as tensors."""

    def __init__(self, images: Images, model: Any) -> None:
        self._images = images
        self._model = model

    def begin(self, work: TrainStep) -> None:
        """Take in what the step carries beside its samples: their images' arrays in mode processed, else nothing."""
        if isinstance(self._images, Carried):
            shown = {image.descriptor.identity for batch in work.micro_batches for image in batch.images}
            unused = [image.sha256[:16] for image in work.images if image.identity not in shown]
            if unused:
                raise MessageError(f"the step carries the arrays of {unused[0]}, which none of its samples shows")
            self._images.begin(work.images)
        elif work.images:
            raise MessageError(
                f"the step carries the arrays of {len(work.images)} images, and this run is raw",
                remedy='Send references, or set multimodal.mode to "processed" for the whole run',
            )

    def load(self, micro_batch: MicroBatch) -> Batch:
        """The micro-batch ready for a forward; an image that cannot be verified is an error, never a gap."""
        import torch

        family = self._images.family
        samples = micro_batch.samples
        if not micro_batch.rows or not all(row and all(one.tokens for one in row) for row in micro_batch.rows):
            raise TrainingError("a micro-batch has no rows, an empty row or an empty sample", field="rows")
        for sample in samples:
            with of_sample(sample):
                check_sample(sample)
                check_placements(
                    sample.token_ids,
                    [image.offset for image in sample.images],
                    [image.descriptor for image in sample.images],
                    family,
                )
        with of_micro_batch(micro_batch):
            loaded = self._images.load([image.descriptor for image in micro_batch.images])
        sheet = Sheet.of(loaded.pictures)
        inputs = row_inputs(self._model, family, micro_batch.rows, sheet)
        device = inputs["input_ids"].device
        trained = [sample.targets for sample in samples]
        counts = [len(places) for places in trained]
        rows, columns = zip(*starts(micro_batch.rows), strict=True)

        def gathered(name: str) -> torch.Tensor:
            parts = [getattr(sample, name)[places] for sample, places in zip(samples, trained, strict=True)]
            return torch.from_numpy(np.concatenate(parts)).to(device)

        def repeated(values: Sequence[Any]) -> torch.Tensor:
            return torch.from_numpy(np.repeat(np.asarray(values), counts)).to(device)

        return Batch(
            inputs=inputs,
            sheet=sheet,
            rows=repeated(rows),
            columns=repeated(columns) + torch.from_numpy(np.concatenate(trained)).to(device),
            owners=repeated(range(len(samples))),
            token_ids=gathered("token_ids").long(),
            logprobs=gathered("logprobs"),
            temperatures=gathered("temperatures"),
            versions=gathered("versions"),
            advantages=repeated([np.float32(sample.advantage) for sample in samples]),
            rl_weights=repeated([np.float32(sample.weights.rl) for sample in samples]),
            cross_entropy_weights=repeated([np.float32(sample.weights.cross_entropy) for sample in samples]),
            kl_weights=repeated([np.float32(sample.weights.kl) for sample in samples]),
            receipt=loaded.receipt,
        )
