"""Samples that no micro-batch can hold: refused, or cut where no image is cut through."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import numpy as np

from filmroll.errors import SampleTooLongError
from filmroll.train.batches.bins import Costs, Limits
from filmroll.wire.training import SAMPLE_ARRAYS, TrainingSample


@dataclass(frozen=True, slots=True)
class Fitting:
    """Samples that each fit into a micro-batch and have a token to train."""

    samples: list[TrainingSample]
    cut: int
    """How many of them lost their end."""
    dropped: int
    """How many more had nothing to train, or nothing that was left of it."""


def fitting(samples: Iterable[TrainingSample], costs: Costs, limits: Limits, *, cut: bool) -> Fitting:
    """The samples as they are, where they fit; else cut, or a SampleTooLongError that names the sample."""
    kept, shortened, dropped = [], 0, 0
    for sample in samples:
        fit = _fit(sample, costs, limits, cut=cut)
        if fit.trained[1:].any():
            kept.append(fit)
            shortened += fit is not sample
        else:
            dropped += 1
    return Fitting(kept, shortened, dropped)


def beginning(sample: TrainingSample, end: int) -> TrainingSample:
    """The sample's tokens before `end` with all that belongs to them; `end` is inside no image's placeholder."""
    arrays = {name: getattr(sample, name)[:end] for name, _ in SAMPLE_ARRAYS}
    return msgspec.structs.replace(sample, **arrays, images=[one for one in sample.images if one.offset < end])


def _fit(sample: TrainingSample, costs: Costs, limits: Limits, *, cut: bool) -> TrainingSample:
    patches = sum(costs.patches(sample).values())
    if sample.tokens <= limits.tokens and patches <= limits.patches:
        return sample
    if not cut:
        raise SampleTooLongError(
            f"sample {sample.name} has {sample.tokens} tokens and {patches} vision patches, "
            f"a micro-batch holds {limits.tokens} and {limits.patches}",
            remedy="Raise trainer.max_tokens or max_patches, shorten the episodes, or set trainer.overlong to cut",
        )
    begun = beginning(sample, _end(sample, costs, limits))
    # What stands behind the last trained token teaches nothing.
    trained = np.flatnonzero(begun.trained)
    return beginning(begun, int(trained[-1]) + 1 if trained.size else 0)


def _end(sample: TrainingSample, costs: Costs, limits: Limits) -> int:
    """Where the limit is, or where the first image begins that would go beyond it."""
    patches = dict(costs.patches(sample))
    room = limits.patches
    for image in sample.images:
        room -= patches.pop(image.descriptor.identity, 0)
        if room < 0 or image.end > limits.tokens:
            return min(image.offset, limits.tokens)
    return limits.tokens
