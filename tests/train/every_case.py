"""Every model type as a trainer meets it: a tiny checkpoint, a store, and samples that show two pictures many times."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from filmroll.families import Family, load_family
from filmroll.materialize import Materializer
from filmroll.store import Store, open_store
from filmroll.train.loading.loader import Batch, Loader
from filmroll.train.step import TrainerConfig
from filmroll.wire.training import LossWeights, MicroBatch, PlacedImage, TrainingSample
from tests.families.cases import EVERY_CASE

CASES = {case.name.partition("-")[0]: case for case in EVERY_CASE}
"""One of each model type."""
SIZES = [(64, 40), (30, 90)]
SHOWN = [(0,), (1, 0, 1), (), (0, 1)]
"""The pictures of each sample: each of the two at several places, in several samples."""


@dataclass(frozen=True)
class Ground:
    """What is there before a model is loaded."""

    folder: Path
    family: Family
    store: Store
    samples: list[TrainingSample]

    @classmethod
    def of(cls, case: str, folder: Path) -> Ground:
        CASES[case].build(folder / "model")
        family, store = load_family(folder / "model"), open_store(folder / "store")
        noise = np.random.default_rng(0)
        album = [
            family.describe(store.put(noise.integers(0, 256, (height, width, 3), np.uint8))) for width, height in SIZES
        ]
        samples = [_drawn(family, number, [album[one] for one in shown]) for number, shown in enumerate(SHOWN)]
        return cls(folder / "model", family, store, samples)

    @property
    def rows(self) -> list[list[TrainingSample]]:
        """The samples, packed where the family allows it."""
        first, second, third, fourth = self.samples
        return [[first, second, third], [fourth]] if self.family.forward.packs else [[one] for one in self.samples]

    def batch(self, model: Any, rows: list[list[TrainingSample]] | None = None) -> Batch:
        loader = Loader(Materializer(self.store, self.family), model, TrainerConfig())
        return loader.load(MicroBatch(rows=rows or self.rows))


def _drawn(family: Family, number: int, images: list[Any]) -> TrainingSample:
    ids, placed = list(range(65, 70 + number)), []
    for image in images:
        placed.append(PlacedImage(image, len(ids)))
        ids += [*family.expansion(image), 70, 71]
    token_ids = np.array(ids, np.int32)
    return TrainingSample(
        name=f"s{number}",
        token_ids=token_ids,
        trained=(~np.isin(token_ids, family.placeholders.unsampled)).astype(np.uint8),
        logprobs=np.zeros(len(ids), np.float32),
        temperatures=np.full(len(ids), 0.8, np.float32),
        versions=np.zeros(len(ids), np.int32),
        advantage=1.0,
        weights=LossWeights(rl=1.0),
        images=placed,
    )


def gradients(model: Any) -> dict[str, Any]:
    """Those that there are, taken off the model."""
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return found
