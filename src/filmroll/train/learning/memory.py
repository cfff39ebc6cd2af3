"""A GPU's memory in training: how much of it was taken, and what is said where it does not suffice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from filmroll.errors import TrainingError
from filmroll.families import Family
from filmroll.train.batches.bins import Costs
from filmroll.wire.training import MicroBatch


def most_taken(device: torch.device) -> int:
    """Bytes that tensors took of this GPU at most since this was last asked; 0 for any other device."""
    if device.type != "cuda":
        return 0
    most = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return most


@contextmanager
def fitting(batch: MicroBatch, family: Family) -> Iterator[None]:
    """Around what is done with a micro-batch: a TrainingError with its size where the device has no room for it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        longest = max(sum(sample.tokens for sample in row) for row in batch.rows)
        rows = f"{len(batch.rows)} row{'s' if len(batch.rows) > 1 else ''}"
        raise TrainingError(
            f"the device has no memory for a micro-batch of {rows} of up to {longest} tokens and "
            f"{Costs(family).encoded(batch)} vision patches",
            remedy="Lower trainer.max_tokens, trainer.max_patches or trainer.logits_at_once, set "
            "trainer.gradient_checkpointing, or part the model among more trainer.ranks; --resume takes all of these",
            private=str(error),
        ) from error
