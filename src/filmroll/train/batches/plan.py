"""A step's work for each rank: as many micro-batches, and images in the same ones.

Ranks that share a model wait for each other in every forward, and a vision tower that only some of them run
is a deadlock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from filmroll.families.base import Family
from filmroll.train.batches.bins import Costs, Limits
from filmroll.train.batches.overlong import beginning, fitting
from filmroll.train.batches.packing import pack
from filmroll.train.step import TrainerConfig
from filmroll.wire.training import LossWeights, MicroBatch, TrainingSample


@dataclass(frozen=True, slots=True)
class Plan:
    """Micro-batches that hold a step's samples."""

    micro_batches: list[MicroBatch]
    cut: int
    """How many samples lost their end."""
    dropped: int
    """How many had no token to train, or none that was left."""


def plan(samples: Sequence[TrainingSample], family: Family, config: TrainerConfig) -> Plan:
    """Pack the samples. A SampleTooLongError names the first that no micro-batch holds."""
    costs = Costs(family)
    limits = Limits(config.max_tokens, config.max_patches, family.forward.packs)
    fit = fitting(samples, costs, limits, cut=config.overlong == "cut")
    return Plan(pack(fit.samples, costs, limits), fit.cut, fit.dropped)


def deal(packed: Sequence[MicroBatch], costs: Costs, ranks: int) -> list[list[MicroBatch]]:
    """The same samples for so many ranks, a list for each: the i-th of all of them have images, or none of them has.

    Where there are too few, dummies stand that count in nothing.
    """
    rounds = []
    for sees in (True, False):
        alike = [one for one in packed if _sees(one) == sees]
        rounds += _rounds(alike, ranks, costs)
    return [[one[rank] for one in rounds] for rank in range(ranks)]


def _rounds(alike: list[MicroBatch], ranks: int, costs: Costs) -> list[list[MicroBatch]]:
    """What the ranks do at the same time, the costliest together: none waits long for another."""
    if not alike:
        return []
    even = _divided(alike, ranks, costs)
    if missing := -len(even) % ranks:
        even += [_dummy(even, costs)] * missing
    even.sort(key=lambda one: -_cost(one, costs))
    return [even[start : start + ranks] for start in range(0, len(even), ranks)]


def _divided(alike: list[MicroBatch], ranks: int, costs: Costs) -> list[MicroBatch]:
    """The costliest ones in two, until every rank has as many, or none is left that can be divided."""
    divisible = list(alike)
    rest: list[MicroBatch] = []
    while divisible and (len(divisible) + len(rest)) % ranks:
        costliest = max(divisible, key=lambda one: _cost(one, costs))
        divisible.remove(costliest)
        first, second = _halves(costliest)
        if first.rows and _sees(first) == _sees(second):
            divisible += [first, second]
        else:
            rest.append(costliest)
    return divisible + rest


def _halves(batch: MicroBatch) -> tuple[MicroBatch, MicroBatch]:
    """Each within the limits that the whole is in; the first has no rows if there is but one sample."""
    if len(batch.rows) == 1:
        (row,) = batch.rows
        middle = len(row) // 2
        return MicroBatch([row[:middle]] if middle else []), MicroBatch([row[middle:]])
    middle = len(batch.rows) // 2
    return MicroBatch(batch.rows[:middle]), MicroBatch(batch.rows[middle:])


def _dummy(alike: list[MicroBatch], costs: Costs) -> MicroBatch:
    """The beginning of a real sample, its first image if there is one, which counts in no loss."""
    samples = [sample for one in alike for sample in one.samples if bool(sample.images) == _sees(one)]
    begun = [beginning(sample, sample.images[0].end if sample.images else 1) for sample in samples]
    least = min(begun, key=lambda one: (sum(costs.patches(one).values()), one.tokens))
    silent = msgspec.structs.replace(
        least, name=f"dummy of {least.name}", trained=np.zeros_like(least.trained), advantage=0.0, weights=LossWeights()
    )
    return MicroBatch([[silent]])


def _sees(batch: MicroBatch) -> bool:
    return any(sample.images for sample in batch.samples)


def _cost(batch: MicroBatch, costs: Costs) -> int:
    return batch.area + costs.encoded(batch)
