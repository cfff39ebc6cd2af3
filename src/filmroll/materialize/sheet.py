"""A contact sheet: the distinct images of a batch, and every place where one of them is used.

A group of rollouts shows the same images again and again; the vision tower needs each of them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from filmroll.families.base import Arrays


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Picture:
    """One image as a model takes it: its identity, how many features it has, its own arrays.

    The materializer's are levels, uint8; a sheet holds pictures in levels alone, or in values alone.
    """

    identity: tuple[str, str]
    features: int
    arrays: Arrays


@dataclass(frozen=True, slots=True)
class Sheet:
    """`distinct` pictures in order of first use; `places[i]` says which of them stands at place i."""

    distinct: tuple[Picture, ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, pictures: Sequence[Picture]) -> Sheet:
        """The sheet of the pictures of all rows, in row order."""
        numbers: dict[tuple[str, str], int] = {}
        for picture in pictures:
            numbers.setdefault(picture.identity, len(numbers))
        first = {picture.identity: picture for picture in reversed(pictures)}
        return cls(tuple(first[identity] for identity in numbers), tuple(numbers[one.identity] for one in pictures))

    def apart(self) -> Sheet:
        """The same places, each with a picture of its own: for a model that cannot share features among them."""
        return Sheet(tuple(self.distinct[place] for place in self.places), tuple(range(len(self.places))))

    @property
    def features(self) -> int:
        """How many features the vision tower gives for the distinct pictures."""
        return sum(picture.features for picture in self.distinct)

    def array(self, name: str, *, everywhere: bool = False) -> npt.NDArray[np.generic]:
        """The named arrays one after another: of each distinct picture, or of the picture at each place."""
        chosen = [self.distinct[place] for place in self.places] if everywhere else self.distinct
        return np.concatenate([picture.arrays[name] for picture in chosen])

    def feature_rows(self) -> npt.NDArray[np.int64]:
        """For each feature that the places take, its row among the features of the distinct pictures."""
        ends = np.cumsum([picture.features for picture in self.distinct])
        spans = [np.arange(end - picture.features, end) for end, picture in zip(ends, self.distinct, strict=True)]
        return np.concatenate([spans[place] for place in self.places])


def owned(arrays: Arrays) -> Arrays:
    """Arrays that their caller may write to; a picture's own are shared, hence read-only, and are copied."""
    return {name: array if array.flags.writeable else array.copy() for name, array in arrays.items()}
