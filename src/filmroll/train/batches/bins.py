"""A micro-batch that is being filled, and what a sample costs it: known before any pixel is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from filmroll.families.base import Family
from filmroll.wire.training import MicroBatch, TrainingSample

Patches = Mapping[tuple[str, str], int]
"""How many vision patches each distinct image costs, by its identity."""


class Costs:
    """Vision patches by image size, as the family's layout has them."""

    def __init__(self, family: Family) -> None:
        self._of_size = cache(lambda width, height: family.cost(family.layout(width, height)))

    def patches(self, sample: TrainingSample) -> Patches:
        """An image that is shown twice costs once: the vision tower sees it once."""
        references = {one.descriptor.identity: one.descriptor.image for one in sample.images}
        return {identity: self._of_size(image.width, image.height) for identity, image in references.items()}

    def encoded(self, batch: MicroBatch) -> int:
        """The patches of a micro-batch's distinct images."""
        distinct = {identity: n for sample in batch.samples for identity, n in self.patches(sample).items()}
        return sum(distinct.values())


@dataclass(frozen=True, slots=True)
class Limits:
    """What a micro-batch holds."""

    tokens: int
    """Rows times the longest row."""
    patches: int
    """Of its distinct images."""
    packs: bool
    """Whether a row holds several samples."""


@dataclass(slots=True)
class Bin:
    """Rows are as wide as the longest sample, and shorter ones fill the room behind others.

    Wider rows would hold less padding, but attention costs the square of a row's length.
    """

    limits: Limits
    rows: list[list[TrainingSample]] = field(default_factory=list)
    width: int = 0
    patches: int = 0
    _images: set[tuple[str, str]] = field(default_factory=set)
    _used: list[int] = field(default_factory=list)
    """Tokens in each row."""

    @property
    def area(self) -> int:
        return self.width * len(self.rows)

    def shared(self, patches: Patches) -> int:
        """How many of these patches are here already."""
        return sum(count for identity, count in patches.items() if identity in self._images)

    def take(self, sample: TrainingSample, patches: Patches) -> bool:
        """Put the sample into the first row that has room, or into a new one, if the limits allow."""
        more = sum(patches.values()) - self.shared(patches)
        if self.patches + more > self.limits.patches:
            return False
        row = self._with_room(sample.tokens) if self.limits.packs else None
        width, rows = max(self.width, sample.tokens), len(self.rows) + (row is None)
        if width * rows > self.limits.tokens:
            return False
        if row is None:
            row = len(self.rows)
            self.rows.append([])
            self._used.append(0)
        self.rows[row].append(sample)
        self._used[row] += sample.tokens
        self.width = width
        self.patches += more
        self._images.update(patches)
        return True

    def _with_room(self, tokens: int) -> int | None:
        return next((row for row, used in enumerate(self._used) if used + tokens <= self.width), None)
