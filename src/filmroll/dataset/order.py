"""Which rows a step learns from: that follows from the seed and the step's number, so a run can go on there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from filmroll.errors import ConfigError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Order:
    """N rows in epochs of steps; the last step of an epoch has what is left."""

    rows: Indices
    batch_size: int
    seed: int
    shuffle: bool

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def batch(self, step: int) -> list[int]:
        """The rows of a step, each once an epoch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _drawn(self.rows, self.seed, epoch) if self.shuffle else self.rows
        return [int(row) for row in order[place * self.batch_size : (place + 1) * self.batch_size]]


def hold_out(rows: Indices, number: int, seed: int) -> tuple[Indices, Indices]:
    """The rows to learn from, in their order, and so many others that are never learnt from."""
    if number >= len(rows):
        raise ConfigError(f"data.held_out is {number}, of {len(rows)} rows that can be learnt from")
    held = np.sort(_drawn(rows, seed, -1)[:number])
    return rows[~np.isin(rows, held)], held


def _drawn(rows: Indices, seed: int, epoch: int) -> Indices:
    """The rows in the order of an epoch; the one before the first is for what is held out."""
    return np.random.Generator(np.random.PCG64([abs(seed), epoch + 1])).permutation(rows)
