"""Numbers out of rows that may lack them. N = rows; a value that is not there is NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from filmroll.view.records import Row

Floats = npt.NDArray[np.float64]

WINDOW = 10
"""Steps that a mean reward is taken over."""
LARGEST = 1e30
"""A number beyond this is a failure, not a measurement, and axes overflow on it."""


def number(row: Row, *path: str) -> float:
    """The number at that path of keys, or NaN."""
    value: Any = row
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        return math.nan
    return float(value)


def column(rows: Sequence[Row], *path: str) -> Floats:
    """[N] that number of every row."""
    return np.array([number(row, *path) for row in rows], dtype=np.float64)


def total(rows: Sequence[Row], *path: str) -> float:
    """The sum of what is there, 0 if nothing is."""
    return float(np.nansum(column(rows, *path)))


def trailing_mean(y: Floats, window: int = WINDOW) -> Floats:
    """[N] the mean of each value and those before it, at most `window` of them."""
    sums = np.concatenate([[0.0], np.cumsum(y)])
    ends = np.arange(1, len(y) + 1)
    starts = np.maximum(0, ends - window)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def last_mean(rows: Sequence[Row], *path: str) -> tuple[float, int]:
    """The mean over the last steps that have the number, and how many those are."""
    y = column(rows, *path)
    y = y[np.isfinite(y)][-WINDOW:]
    return (float(y.mean()) if len(y) else math.nan), len(y)


def thin(x: Floats, y: Floats, limit: int, how: Callable[[Floats], Any] = np.mean) -> tuple[Floats, Floats]:
    """At most `limit` points, NaN left out: neighbours share one, at their mean x and `how` of their y."""
    there = np.isfinite(x) & np.isfinite(y)
    x, y = x[there], y[there]
    if len(x) <= limit:
        return x, y
    together = -(-len(x) // limit)
    starts = range(0, len(x), together)
    return (
        np.array([x[start : start + together].mean() for start in starts]),
        np.array([how(y[start : start + together]) for start in starts]),
    )
