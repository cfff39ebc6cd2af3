"""Packing: samples into micro-batches by a token budget, before any pixel is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from filmroll.errors import SampleTooLongError
from filmroll.wire.training import MicroBatch, TrainingSample


def pack_samples(samples: Sequence[TrainingSample], *, max_tokens: int) -> list[MicroBatch]:
    """First-fit-decreasing: rows of a micro-batch are padded to its longest, and that area stays in the budget.

    A sample goes in whole: its images are never separated from their placeholders.
    """
    bins: list[list[TrainingSample]] = []
    for sample in sorted(samples, key=lambda one: one.tokens, reverse=True):
        if sample.tokens > max_tokens:
            raise SampleTooLongError(
                f"sample {sample.name} has {sample.tokens} tokens, a micro-batch holds {max_tokens}",
                remedy="Raise trainer.max_tokens, or shorten the episodes",
            )
        for rows in bins:
            # Samples come longest first, so the first row is as wide as the bin.
            if rows[0].tokens * (len(rows) + 1) <= max_tokens:
                rows.append(sample)
                break
        else:
            bins.append([sample])
    return [MicroBatch(rows) for rows in bins]
