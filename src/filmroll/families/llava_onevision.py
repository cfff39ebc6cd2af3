"""LLaVA-OneVision: an overview of every picture, then the picture itself in square tiles.

Of a list of sizes, the one that keeps most of the picture is padded around it and cut into tiles. The
model drops the features of the padding, shrinks what is left to a bound, and ends each row of features
with a learned new line. Placeholder: one token repeated, as often as features are left.

Every picture has tiles here, however many a prompt has. That is what the processor does with a list of
images, what the model takes for granted, and what a reference of one image can say. Only where a call
gives the images of each prompt in a list of their own does the processor show the several images of one
prompt otherwise, as one padded square each: that cannot be had, because no image would have a layout
before its prompt is known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import numpy as np

from filmroll.errors import CheckpointError
from filmroll.families.base import Arrays, Family, ForwardPolicy, Layout, Placeholders, Rgb, check_sides
from filmroll.families.checkpoint import Checkpoint, Section
from filmroll.families.grid import read_placeholders
from filmroll.families.recipe import Tones, check_processor, fingerprint, read_tones, recipe
from filmroll.image import ImageRef
from filmroll.pixels.patches import CHANNELS, Cut, Values

PROCESSORS = tuple(f"LlavaOnevisionImageProcessor{kind}" for kind in ("", "Fast", "Pil"))
LAYOUT = ("side", "pinpoints", "num_image_tokens", "max_tiles")
TEXTS = ("<image>", "<video>")
TOKENS = ("image_token_index", "video_token_index")
TOKEN_DEFAULTS = (151646, 151647)
PINPOINTS = "image_grid_pinpoints"
STEPS = range(384, 2305, 384)
ASPECT_RATIO = "anyres_max_9"
FEATURES = "full"
LEEWAY = 1.1
"""Features may be this much over the bound, in each direction, before they are shrunk."""

Sizes = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlavaOnevisionSettings(Tones):
    """The processors' numbers; the defaults are those of their classes in transformers."""

    side: int = 384
    """Of a tile."""
    pinpoints: Sizes = tuple((height, width) for height in STEPS for width in STEPS)
    """The sizes (height, width) that are cut into tiles."""
    num_image_tokens: int = 27**2
    """Features of a tile."""
    max_tiles: int = 9
    """Features of more tiles than these are shrunk to so many."""


class LlavaOnevision(Family):
    name = "llava_onevision"
    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)

    def __init__(self, settings: LlavaOnevisionSettings, *, placeholders: Placeholders) -> None:
        self.settings = settings
        self.placeholders = placeholders
        self.renderer = None
        self.forward = ForwardPolicy(packs=True)
        self.fingerprint = fingerprint(self.name, {key: getattr(settings, key) for key in LAYOUT})
        self.recipe = recipe(self.name, asdict(settings))
        self.cut = Cut((settings.side, settings.side))
        super().__init__(settings.table())

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        settings = _settings(checkpoint)
        placeholders = read_placeholders(checkpoint.config, TOKENS, TEXTS, TOKEN_DEFAULTS)
        if checkpoint.token(TEXTS[0]) != placeholders.image:
            raise CheckpointError(
                f"{checkpoint.config.file}: {TOKENS[0]} is {placeholders.image}, not the tokenizer's {TEXTS[0]}",
                remedy="The files are not of one checkpoint; fetch them again",
            )
        return cls(settings, placeholders=placeholders)

    def layout(self, width: int, height: int) -> Layout:
        check_sides(width, height)
        tall, wide = _best(width, height, self.settings.pinpoints)
        rows, columns = tall // self.settings.side, wide // self.settings.side
        lines, length = self._features(width, height, rows, columns)
        features = self.settings.num_image_tokens + lines * (length + 1)
        return Layout(
            grid=(1, rows, columns),
            tokens=features,
            features=features,
            payload={"tile_grid": [[1, rows, columns]], "image_size": [[1, height, width]]},
        )

    def join(self, parts: Sequence[Arrays]) -> Arrays:
        """Pictures with fewer tiles than others are padded with tiles of zeros, which the model passes over."""
        if len(parts) == 1:
            return parts[0]
        values = [part["pixel_values"][0] for part in parts]
        padded = np.zeros((len(parts), max(map(len, values)), *values[0].shape[1:]), values[0].dtype)
        for place, tiles in zip(padded, values, strict=True):
            place[: len(tiles)] = tiles
        small = ({name: array for name, array in part.items() if name != "pixel_values"} for part in parts)
        return {"pixel_values": padded} | super().join(list(small))

    def cost(self, layout: Layout) -> int:
        return _pictures(layout) * self.settings.num_image_tokens

    def pixel_bytes(self, image: ImageRef) -> int:
        tile = CHANNELS * self.settings.side**2 * np.dtype(np.float32).itemsize
        return _pictures(self.layout(image.width, image.height)) * tile

    def _features(self, width: int, height: int, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns of features that are left of the tiles', in the model's own floating point."""
        patches = math.isqrt(self.settings.num_image_tokens)
        lines, length = rows * patches, columns * patches
        if width / height > length / lines:
            lines -= (lines - int(round(height * (length / width), 7))) // 2 * 2
        else:
            length -= (length - int(round(width * (lines / height), 7))) // 2 * 2
        over = math.sqrt(lines * length / (self.settings.max_tiles * patches**2))
        return (int(lines // over), int(length // over)) if over > LEEWAY else (lines, length)

    def _sizes(self, layout: Layout) -> Sequence[tuple[int, int]]:
        side = self.settings.side
        _, rows, columns = layout.grid
        return [(side, side), (rows * side, columns * side)]

    def _canvases(self, rgb: Rgb, layout: Layout) -> Iterator[Rgb]:
        settings = self.settings
        overview, tiles = self._sizes(layout)
        yield settings.resize(rgb, *overview)
        height, width, _ = rgb.shape
        canvas = np.zeros((*tiles, CHANNELS), np.uint8)
        tall, wide = _inside(width, height, *tiles)
        top, left = (tiles[0] - tall) // 2, (tiles[1] - wide) // 2
        canvas[top : top + tall, left : left + wide] = settings.resize(rgb, tall, wide)
        yield canvas

    def _arrays(self, values: Sequence[Values], layout: Layout) -> Arrays:
        _, height, width = layout.payload["image_size"][0]
        return {
            "pixel_values": np.concatenate(values).squeeze(2)[None],
            "image_sizes": np.array([[height, width]], np.int64),
            "batch_num_images": np.ones(1, np.int64),
        }


def _pictures(layout: Layout) -> int:
    """How many pictures the vision tower sees: the overview and the tiles."""
    return 1 + math.prod(layout.grid)


def _best(width: int, height: int, pinpoints: Sizes) -> tuple[int, int]:
    """The size that keeps most of the picture's pixels, and of such ones that which wastes least."""
    best, most, least = pinpoints[0], 0, math.inf
    area = width * height
    for size in pinpoints:
        tall, wide = size
        # Comparisons written out: calls of min() were half of what a descriptor cost.
        across, down = wide / width, tall / height
        scale = across if across < down else down
        kept = int(width * scale) * int(height * scale)
        if kept > area:
            kept = area
        if kept >= most:
            wasted = tall * wide - kept
            if kept > most or wasted < least:
                best, most, least = size, kept, wasted
    return best


def _inside(width: int, height: int, tall: int, wide: int) -> tuple[int, int]:
    """Height and width of the picture where it touches two sides of a canvas."""
    if wide / width < tall / height:
        return min(math.ceil(height * (wide / width)), tall), wide
    return tall, min(math.ceil(width * (tall / height)), wide)


def _settings(checkpoint: Checkpoint) -> LlavaOnevisionSettings:
    section, joint, config = checkpoint.processor, checkpoint.joint, checkpoint.config
    default = LlavaOnevisionSettings()
    check_processor(section, PROCESSORS, switches={"do_resize": True, "do_pad": True, "do_center_crop": False})
    if section.has("crop_size"):
        raise CheckpointError(f"{section.file} has crop_size", remedy="filmroll cuts tiles of `size` alone")
    settings = LlavaOnevisionSettings(
        side=_side(section, default.side),
        pinpoints=_pinpoints(section, default),
        num_image_tokens=joint.whole("num_image_tokens"),
        max_tiles=_max_tiles(joint),
        **read_tones(section, default),
    )
    _check_model(settings, config, default)
    for file in (joint, config):
        strategy = file.text("vision_feature_select_strategy", FEATURES)
        if strategy != FEATURES:
            raise CheckpointError(
                f"{file.file}: vision_feature_select_strategy is {strategy[:64]!r}",
                remedy=f"filmroll computes layouts for {FEATURES!r} alone",
            )
    return settings


def _side(section: Section, default: int) -> int:
    size = section.section("size", {"height": default, "width": default})
    height, width = (size.whole(key) for key in ("height", "width"))
    if height != width:
        raise CheckpointError(f"{section.file}: size is {height}x{width}", remedy="Tiles are square; correct the file")
    return height


def _pinpoints(section: Section, default: LlavaOnevisionSettings) -> Sizes:
    value: Any = section.values.get(PINPOINTS)
    if value is None:
        return default.pinpoints
    if not isinstance(value, list) or not value or not all(map(_is_size, value)):
        raise CheckpointError(
            f"{section.file}: {PINPOINTS} is {str(value)[:64]}", remedy="It must be a list of [height, width]"
        )
    return tuple((height, width) for height, width in value)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)


def _max_tiles(section: Section) -> int:
    value = section.text("vision_aspect_ratio", ASPECT_RATIO)
    if not (found := re.fullmatch(r"anyres_max_([1-9][0-9]{0,3})", value)):
        raise CheckpointError(
            f"{section.file}: vision_aspect_ratio is {value[:64]!r}", remedy=f"It must be like {ASPECT_RATIO!r}"
        )
    return int(found[1])


def _check_model(settings: LlavaOnevisionSettings, config: Section, default: LlavaOnevisionSettings) -> None:
    """The model counts tiles and features by its own copy of these numbers."""
    tower = config.section("vision_config")
    side = tower.whole("image_size")
    for what, ours, theirs in (
        ("the side of a tile", settings.side, side),
        ("the number of a tile's features", settings.num_image_tokens, (side // tower.whole("patch_size")) ** 2),
        (PINPOINTS, settings.pinpoints, _pinpoints(config, default)),
        ("the bound in vision_aspect_ratio", settings.max_tiles, _max_tiles(config)),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"{what} is {str(ours)[:64]} to the processor, {str(theirs)[:64]} to the model",
                remedy="The files are not of one checkpoint; fetch them again",
            )
    if any(length % settings.side for size in settings.pinpoints for length in size):
        raise CheckpointError(
            f"{config.file}: {PINPOINTS} are no multiples of the side of a tile, {settings.side}",
            remedy="Correct the file, and the image processor's",
        )
