"""InternVL 3: pictures cut into square tiles, as many as suit their shape, and a thumbnail after them.

Served by GotOcr2's image processor as InternVL's own processor calls it: always with tiles, whatever
the file says of `crop_to_patches`. Placeholder: <img>, the same number of tokens for each tile, </img>.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from filmroll.errors import CheckpointError
from filmroll.families.base import Arrays, Family, ForwardPolicy, Layout, Placeholders, Rgb, check_sides
from filmroll.families.checkpoint import Checkpoint, Section
from filmroll.families.recipe import Tones, check_processor, fingerprint, read_tones, recipe
from filmroll.image import ImageRef
from filmroll.pixels.patches import CHANNELS, Cut, Values
from filmroll.wire.descriptor import ImageDescriptor

PROCESSORS = ("GotOcr2ImageProcessor", "GotOcr2ImageProcessorFast", "GotOcr2ImageProcessorPil")
TEXTS = ("<IMG_CONTEXT>", "<img>", "</img>")
IMAGE_TOKEN_ID = 151667
"""The id of <IMG_CONTEXT> where config.json leaves it out."""
LAYOUT = ("height", "width", "min_patches", "max_patches", "image_seq_length")


@dataclass(frozen=True, slots=True, kw_only=True)
class InternVLSettings(Tones):
    """The processors' numbers; the defaults are those of their classes in transformers."""

    height: int = 384
    width: int = 384
    """Of a tile."""
    min_patches: int = 1
    max_patches: int = 12
    """Bounds on the number of tiles, the thumbnail not counted."""
    image_seq_length: int = 256
    """Tokens of a tile."""


class InternVL(Family):
    name = "internvl"
    model_types: ClassVar[tuple[str, ...]] = ("internvl",)

    def __init__(
        self, settings: InternVLSettings, *, placeholders: Placeholders, ends: tuple[int, int], tile_patches: int
    ) -> None:
        """`ends` are the ids of <img> and </img>; the vision tower cuts a tile into `tile_patches`."""
        self.settings = settings
        self.placeholders = placeholders
        self.ends = ends
        self.tile_patches = tile_patches
        self.renderer = None
        self.forward = ForwardPolicy(unused=("num_patches",), packs=True)
        self.fingerprint = fingerprint(self.name, {key: getattr(settings, key) for key in LAYOUT})
        self.recipe = recipe(self.name, {"crop_to_patches": True, **asdict(settings)})
        self.cut = Cut((settings.height, settings.width))
        super().__init__(settings.table())

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        settings = _settings(checkpoint.processor, checkpoint.joint)
        patches = _tile_patches(settings, checkpoint.config)
        image, *ends = (checkpoint.token(text) for text in TEXTS)
        named = checkpoint.config.whole("image_token_id", IMAGE_TOKEN_ID, least=0)
        if image != named:
            raise CheckpointError(
                f"{checkpoint.config.file} has image_token_id {named}, {TEXTS[0]} is token {image}",
                remedy="The files are not of one checkpoint; fetch them again",
            )
        placeholders = Placeholders(image=image, unsampled=(image, *ends), texts=TEXTS)
        return cls(settings, placeholders=placeholders, ends=(ends[0], ends[1]), tile_patches=patches)

    def layout(self, width: int, height: int) -> Layout:
        check_sides(width, height)
        grid = (1, *self._arrangement(width, height))
        features = _pictures(grid) * self.settings.image_seq_length
        return Layout(
            grid=grid, tokens=features + len(self.ends), features=features, payload={"tile_grid": [list(grid)]}
        )

    def expansion(self, image: ImageDescriptor) -> npt.NDArray[np.int32]:
        tokens = super().expansion(image)
        tokens[0], tokens[-1] = self.ends
        return tokens

    def cost(self, layout: Layout) -> int:
        return _pictures(layout.grid) * self.tile_patches

    def pixel_bytes(self, image: ImageRef) -> int:
        tiles = _pictures(self.layout(image.width, image.height).grid)
        return tiles * CHANNELS * self.settings.height * self.settings.width * np.dtype(np.float32).itemsize

    def _arrangement(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of tiles, by the closest ratio of sides.

        Of equally close ones the later wins, which has more tiles, as long as the picture fills half of them.
        """
        settings = self.settings
        ratio, area = width / height, width * height
        closest, best = float("inf"), (1, 1)
        for columns, rows in self._arrangements:
            distance = abs(ratio - columns / rows)
            filled = area > 0.5 * settings.height * settings.width * columns * rows
            if distance < closest or (distance == closest and filled):
                closest, best = distance, (rows, columns)
        return best

    @cached_property
    def _arrangements(self) -> list[tuple[int, int]]:
        """(columns, rows) between the bounds, by number of tiles, then columns: the order decides between equals."""
        least, most = self.settings.min_patches, self.settings.max_patches
        every = ((columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1))
        return sorted((one for one in every if one[0] * one[1] >= least), key=lambda one: one[0] * one[1])

    def _sizes(self, layout: Layout) -> Sequence[tuple[int, int]]:
        tall, wide = self.settings.height, self.settings.width
        _, rows, columns = layout.grid
        return [(rows * tall, columns * wide), *([(tall, wide)] if rows * columns > 1 else [])]

    def _canvases(self, rgb: Rgb, layout: Layout) -> Iterable[Rgb]:
        return (self.settings.resize(rgb, *size) for size in self._sizes(layout))

    def _arrays(self, values: Sequence[Values], layout: Layout) -> Arrays:
        tiles = np.concatenate(values).squeeze(2)
        return {"pixel_values": tiles, "num_patches": np.array([_pictures(layout.grid)], np.int64)}


def _pictures(grid: Sequence[int]) -> int:
    """How many pictures the vision tower sees: the tiles, and the thumbnail where they are several."""
    _, rows, columns = grid
    return rows * columns + (rows * columns > 1)


def _settings(section: Section, joint: Section) -> InternVLSettings:
    default = InternVLSettings()
    check_processor(section, PROCESSORS, switches={"do_resize": True})
    height, width = section.pair("size", (default.height, default.width))
    return InternVLSettings(
        height=height,
        width=width,
        min_patches=section.whole("min_patches", default.min_patches),
        max_patches=section.whole("max_patches", default.max_patches),
        image_seq_length=joint.whole("image_seq_length", default.image_seq_length),
        **read_tones(section, default),
    )


def _tile_patches(settings: InternVLSettings, config: Section) -> int:
    """The vision tower's patches of a tile; it must take such tiles, and give a feature for each of their tokens."""
    tower = config.section("vision_config", {})
    sides = tower.pair("image_size", (448, 448))
    rows, columns = (side // patch for side, patch in zip(sides, tower.pair("patch_size", (14, 14)), strict=True))
    ratio = config.number("downsample_ratio", 0.5)
    features = int(rows * ratio) * int(columns * ratio)
    if (*sides, features) != (settings.height, settings.width, settings.image_seq_length):
        raise CheckpointError(
            f"{config.file} has a vision tower for tiles of {sides[0]}x{sides[1]} pixels and {features} features, "
            f"the processors make {settings.height}x{settings.width} and {settings.image_seq_length}",
            remedy="The files are not of one checkpoint; fetch them again",
        )
    return rows * columns
