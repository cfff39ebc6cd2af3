"""Packed micro-batches beside padded ones: vision work, padding, and the time of a training step.

    python benchmarks/packing.py

64 samples, eight rollouts of each of eight color-codeword-like prompts, on the tiny Qwen3-VL: a question
and one or two pictures of 100x100 pixels a turn, completions of 1 to 12 tokens. Once all have three
turns, as in the demo; once they end after one to eight. Each is packed in three ways:

- padded: first-fit-decreasing by tokens alone, a row for each sample
- packed: by tokens and patches, groups together, short samples behind others in rows
- one row: the same micro-batches, each as one long row

The steps alternate, so whatever else the machine does is spread over all.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from harness import conclude, show

from filmroll.families import load_family
from filmroll.families.base import Family
from filmroll.families.tiny import build_tiny_model
from filmroll.materialize import Materializer
from filmroll.store import open_store
from filmroll.train.batches.bins import Costs
from filmroll.train.batches.plan import plan
from filmroll.train.learning.trainer import Trainer
from filmroll.train.step import StepReport, TrainerConfig, TrainStep
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.training import LossWeights, MicroBatch, PlacedImage, TrainingSample

GROUPS, ROLLOUTS, ROUNDS = 8, 8, 7
WORKLOADS = {"three turns": (3, 3), "one to eight turns": (1, 8)}
CONFIG = TrainerConfig(threads=1)


def rollout(family: Family, name: str, turns: int, album: Sequence[ImageDescriptor]) -> TrainingSample:
    """A conversation over the group's pictures; what is sampled differs in length."""
    ids: list[int] = []
    trained: list[int] = []
    images = []
    for turn in range(turns):
        ids += [65] * 25
        for picture in album[2 * turn : 2 * turn + 1 + turn % 2]:
            images.append(PlacedImage(picture, len(ids)))
            ids += [*family.expansion(picture).tolist(), 66]
        said = random.randint(1, 12)
        trained += [0] * (len(ids) - len(trained)) + [1] * said
        ids += [67] * said
    count = len(ids)
    return TrainingSample(
        name=name,
        token_ids=np.array(ids, np.int32),
        trained=np.array(trained, np.uint8),
        logprobs=np.full(count, -6, np.float32),
        temperatures=np.ones(count, np.float32),
        versions=np.zeros(count, np.int32),
        advantage=1.0,
        weights=LossWeights(rl=1.0),
        images=images,
    )


def padded(samples: Sequence[TrainingSample]) -> list[MicroBatch]:
    """First-fit-decreasing by tokens: rows times the longest row stay within the limit."""
    bins: list[list[TrainingSample]] = []
    for sample in sorted(samples, key=lambda one: -one.tokens):
        for rows in bins:
            if rows[0].tokens * (len(rows) + 1) <= CONFIG.max_tokens:
                rows.append(sample)
                break
        else:
            bins.append([sample])
    return [MicroBatch([[sample] for sample in rows]) for rows in bins]


def compare(
    trainer: Trainer, samples: Sequence[TrainingSample]
) -> dict[str, tuple[list[MicroBatch], StepReport, float]]:
    """Of each way its micro-batches, a step's report, and the median of its seconds."""
    packed = plan(samples, trainer.family, CONFIG).micro_batches
    ways = {
        "padded": padded(samples),
        "packed": packed,
        "one row": [MicroBatch([one.samples]) for one in packed],
    }
    taken: dict[str, list[StepReport]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, batches in ways.items():
            taken[name].append(trainer.step(TrainStep(0.0, 0, batches)))
    return {
        name: (ways[name], reports[0], statistics.median(one.seconds for one in reports))
        for name, reports in taken.items()
    }


def main() -> None:
    random.seed(0)
    noise = np.random.default_rng(0)
    rows: list[list[object]] = []
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = build_tiny_model(Path(folder) / "model")
        store = open_store(Path(folder) / "images")
        family = load_family(model)
        trainer = Trainer(model, Materializer(store, family), CONFIG)
        costs = Costs(family)
        picture: Callable[[], ImageDescriptor] = lambda: family.describe(  # noqa: E731
            store.put(noise.integers(0, 256, (100, 100, 3), np.uint8))
        )
        for workload, (least, most) in WORKLOADS.items():
            samples = []
            for group in range(GROUPS):
                album = [picture() for _ in range(2 * most)]
                for number in range(ROLLOUTS):
                    turns = random.randint(least, most)
                    samples.append(rollout(family, f"{group}/{number}", turns, album))
            found = compare(trainer, samples)
            every = sum(costs.encoded(MicroBatch([[one]])) for one in samples)
            for name, (batches, report, seconds) in found.items():
                speed = report.tokens / seconds
                rows.append(
                    [f"{workload}, {name}", len(batches), report.tokens / report.area, report.patches, every, speed]
                )
            (_, before, slow), (_, after, fast) = found["padded"], found["packed"]
            key = workload.split()[0]
            figures[f"patches_saved_{key}"] = 1 - after.patches / before.patches
            figures[f"packed_speedup_{key}"] = slow / fast
    header = ["", "micro-batches", "tokens / area", "patches", "of one a sample", "tokens/s"]
    show("A step of 64 samples", header, rows)
    goals = {f"packed_speedup_{workload.split()[0]}": (">=", 1.0) for workload in WORKLOADS}
    conclude("packing", figures, goals)


if __name__ == "__main__":
    main()
