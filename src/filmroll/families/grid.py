"""What families share that resize a picture to whole merged patches between two bounds and cut it into one grid."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np

from filmroll.errors import CheckpointError, LayoutError
from filmroll.families.base import Arrays, Family, ForwardPolicy, Layout, Placeholders, Rgb, check_sides
from filmroll.families.checkpoint import Section
from filmroll.families.recipe import Tones, fingerprint, first_fingerprint, recipe
from filmroll.image import ImageRef
from filmroll.pixels.patches import CHANNELS, Cut, Values

MAX_ASPECT_RATIO = 200
FINGERPRINTED = ("max_pixels", "merge_size", "min_pixels", "patch_size", "temporal_patch_size")
"""What other systems put into the fingerprint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSettings(Tones):
    """The image processor's numbers."""

    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    min_pixels: int
    max_pixels: int

    @property
    def unit(self) -> int:
        """The side of what becomes one token, in pixels."""
        return self.patch_size * self.merge_size


class GridFamily(Family):
    """One canvas, one grid, one token for each merge x merge patches."""

    line: ClassVar[str]
    """What people call these models."""

    def __init__(
        self, settings: GridSettings, *, placeholders: Placeholders, renderer: str | None = None, packs: bool = True
    ) -> None:
        self.settings = settings
        self.placeholders = placeholders
        self.renderer = renderer
        # Every such model takes its positions from mm_token_type_ids; some fail without, some go on wrongly.
        self.forward = ForwardPolicy(marks="mm_token_type_ids", grid="image_grid_thw", packs=packs)
        numbers = {key: getattr(settings, key) for key in FINGERPRINTED}
        self.fingerprint = fingerprint(self.name, numbers)
        self.first_fingerprint = first_fingerprint(self.name, numbers)
        self.recipe = recipe(self.name, asdict(settings))
        self.cut = Cut((settings.patch_size, settings.patch_size), settings.merge_size, settings.temporal_patch_size)
        super().__init__(settings.table())

    @abstractmethod
    def _fit(self, width: int, height: int) -> tuple[int, int]:
        """The height and width that a picture with both sides at least 1 is resized to."""

    def layout(self, width: int, height: int) -> Layout:
        check_sides(width, height)
        settings = self.settings
        target_height, target_width = self._fit(width, height)
        rows, columns = target_height // settings.patch_size, target_width // settings.patch_size
        tokens = rows * columns // settings.merge_size**2
        return Layout(
            grid=(1, rows, columns),
            tokens=tokens,
            features=tokens,
            payload={"image_grid_thw": [[1, rows, columns]]},
        )

    def _check_ratio(self, width: int, height: int) -> None:
        ratio = max(width, height) / min(width, height)
        if ratio > MAX_ASPECT_RATIO:
            raise LayoutError(
                f"an image of {width}x{height} pixels is {ratio:.0f} times as long as wide",
                remedy=f"Models of the {self.line} line take at most {MAX_ASPECT_RATIO}; crop or pad it",
            )

    def _sizes(self, layout: Layout) -> Sequence[tuple[int, int]]:
        _, rows, columns = layout.grid
        patch = self.settings.patch_size
        return [(rows * patch, columns * patch)]

    def _canvases(self, rgb: Rgb, layout: Layout) -> Iterable[Rgb]:
        return [self.settings.resize(rgb, *size) for size in self._sizes(layout)]

    def _arrays(self, values: Sequence[Values], layout: Layout) -> Arrays:
        (patches,) = values
        return {
            "pixel_values": patches.reshape(len(patches), -1),
            "image_grid_thw": np.array([layout.grid], np.int64),
        }

    def cost(self, layout: Layout) -> int:
        return math.prod(layout.grid)

    def pixel_bytes(self, image: ImageRef) -> int:
        settings = self.settings
        patch = CHANNELS * settings.temporal_patch_size * settings.patch_size**2
        return self.cost(self.layout(image.width, image.height)) * patch * np.dtype(np.float32).itemsize


def fit_area(height: int, width: int, settings: GridSettings, *, frames: int = 1) -> tuple[int, int]:
    """Whole units between the bounds on the area, all frames counted.

    The order of the floating point operations and round() to even are the processors' own: a product
    taken in another order lands on another side of a multiple for some sizes.
    """
    unit = settings.unit
    tall, wide = round(height / unit) * unit, round(width / unit) * unit
    if frames * tall * wide > settings.max_pixels:
        shrink = math.sqrt((frames * height * width) / settings.max_pixels)
        tall = max(unit, math.floor(height / shrink / unit) * unit)
        wide = max(unit, math.floor(width / shrink / unit) * unit)
    elif frames * tall * wide < settings.min_pixels:
        grow = math.sqrt(settings.min_pixels / (frames * height * width))
        tall = math.ceil(height * grow / unit) * unit
        wide = math.ceil(width * grow / unit) * unit
    return tall, wide


def check_tower(settings: GridSettings, config: Section) -> None:
    """The vision tower cuts patches as the processor does, or its weights would read other pixels than they learned."""
    tower = config.section("vision_config", {})
    for theirs, ours in (
        ("patch_size", settings.patch_size),
        ("spatial_merge_size", settings.merge_size),
        ("temporal_patch_size", settings.temporal_patch_size),
    ):
        value = tower.values.get(theirs)
        if value not in (None, ours, [ours, ours]):
            raise CheckpointError(
                f"{config.file} has vision_config.{theirs} {str(value)[:64]}, the image processor has {ours}",
                remedy="The two files are not of one checkpoint; fetch both again",
            )


def read_placeholders(
    config: Section, keys: Sequence[str], texts: tuple[str, ...], defaults: Sequence[int]
) -> Placeholders:
    """Vision tokens by their keys in config.json, the one that takes features first."""
    ids = tuple(config.whole(key, value, least=0) for key, value in zip(keys, defaults, strict=True))
    if len(set(ids)) < len(ids):
        raise CheckpointError(f"{config.file} gives two of {', '.join(keys)} the same id", remedy="Correct the file")
    return Placeholders(image=ids[0], unsampled=ids, texts=texts)
