"""Packing: samples into micro-batches by tokens and vision patches, before any pixel is loaded.

A sample goes in whole, so its images are never separated from their placeholders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from filmroll.train.batches.bins import Bin, Costs, Limits, Patches
from filmroll.wire.training import MicroBatch, TrainingSample

Order = Callable[[list[Bin], Patches], Sequence[Bin]]
"""Which bins are tried for a sample of these patches, one after the other."""


def pack(samples: Sequence[TrainingSample], costs: Costs, limits: Limits) -> list[MicroBatch]:
    """As few micro-batches as first-fit-decreasing finds, with samples of the same images side by side.

    The same samples give the same micro-batches. Each sample must fit by itself (`overlong.fitting`).
    """
    decreasing = _fill(_groups_decreasing(samples), costs, limits, _most_shared_first)
    # Seldom, the order in which samples came is the better one; it is never the worse for next-fit.
    as_they_came = _fill(samples, costs, limits, lambda bins, _: bins[-1:])
    best = min(decreasing, as_they_came, key=lambda bins: (len(bins), sum(one.patches for one in bins)))
    return [MicroBatch(one.rows) for one in best]


def _fill(samples: Sequence[TrainingSample], costs: Costs, limits: Limits, order: Order) -> list[Bin]:
    bins: list[Bin] = []
    for sample in samples:
        patches = costs.patches(sample)
        if not any(one.take(sample, patches) for one in order(bins, patches)):
            fresh = Bin(limits)
            if not fresh.take(sample, patches):
                raise AssertionError(f"{sample.name} was not fitted")
            bins.append(fresh)
    return bins


def _most_shared_first(bins: list[Bin], patches: Patches) -> Sequence[Bin]:
    """An image is encoded once in a micro-batch: better where it is already."""
    return sorted(bins, key=lambda one: -one.shared(patches)) if patches else bins


def _groups_decreasing(samples: Sequence[TrainingSample]) -> list[TrainingSample]:
    """The longest first, each followed by those that begin with the same image: rollouts of a group do."""

    def group(sample: TrainingSample) -> str:
        return sample.images[0].descriptor.image.sha256 if sample.images else ""

    longest: dict[str, int] = {}
    for sample in samples:
        longest[group(sample)] = max(longest.get(group(sample), 0), sample.tokens)
    return sorted(samples, key=lambda one: (-longest[group(one)], group(one), -one.tokens))
