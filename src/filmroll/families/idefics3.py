"""Idefics3 and SmolVLM: pictures stretched to whole square tiles, and an overview of the same side after them.

Sizes follow from each other: the longest edge is set, both sides grow to whole tiles, the overview is made
of the result. Placeholder: each tile behind a marker that tells its row and column, a new line after each
row, the overview between markers of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from filmroll.errors import CheckpointError, GridError, LayoutError
from filmroll.families.base import Arrays, Family, ForwardPolicy, Layout, Placeholders, Rgb, check_sides
from filmroll.families.checkpoint import Checkpoint, Section
from filmroll.families.markers import Markers, read_markers, read_placeholders
from filmroll.families.recipe import HALF, LANCZOS, Tones, check_processor, fingerprint, read_tones, recipe
from filmroll.families.tokenizer import read_tokenizer
from filmroll.image import ImageRef
from filmroll.pixels.patches import CHANNELS, Channels, Cut, Values
from filmroll.wire.descriptor import ImageDescriptor

PROCESSORS = tuple(f"{line}ImageProcessor{kind}" for line in ("Idefics3", "SmolVLM") for kind in ("", "Fast", "Pil"))
LAYOUT = ("longest_edge", "tile", "do_image_splitting", "image_seq_len")
IMAGE_TOKEN_ID = 128257
"""The id of <image> where config.json leaves it out."""
MAX_EDGE = 4096
"""No edge grows longer before tiles are made, whatever the settings say."""
GRID = "tile_grid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Idefics3Settings(Tones):
    """The processors' numbers; the defaults are those of their classes in transformers."""

    longest_edge: int = 4 * 364
    tile: int = 364
    do_image_splitting: bool = True
    image_seq_len: int = 169
    """Tokens of a tile."""
    resample: int = LANCZOS
    image_mean: Channels = HALF
    image_std: Channels = HALF

    @property
    def most(self) -> int:
        """Tiles of the longest possible row or column."""
        return -(-min(self.longest_edge, MAX_EDGE) // self.tile) if self.do_image_splitting else 1


class Idefics3(Family):
    name = "idefics3"
    model_types: ClassVar[tuple[str, ...]] = ("idefics3", "smolvlm")

    def __init__(
        self, settings: Idefics3Settings, *, placeholders: Placeholders, markers: Markers, tile_patches: int
    ) -> None:
        """The vision tower cuts a tile into `tile_patches`."""
        self.settings = settings
        self.placeholders = placeholders
        self.markers = markers
        self.tile_patches = tile_patches
        self.renderer = None
        # Without a mask the model takes every tile for full, as ours are; it would be larger than the levels.
        self.forward = ForwardPolicy(unused=("rows", "cols", "pixel_attention_mask"), packs=True)
        self.fingerprint = fingerprint(self.name, {key: getattr(settings, key) for key in LAYOUT})
        self.recipe = recipe(self.name, asdict(settings))
        self.cut = Cut((settings.tile, settings.tile))
        super().__init__(settings.table())

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        settings = _settings(checkpoint.processor, checkpoint.joint)
        _check_padding(settings, checkpoint.processor)
        tokenizer = read_tokenizer(checkpoint.folder)
        image = checkpoint.config.whole("image_token_id", IMAGE_TOKEN_ID, least=0)
        return cls(
            settings,
            markers=read_markers(tokenizer, image, settings.most),
            placeholders=read_placeholders(tokenizer, image, settings.most),
            tile_patches=_tile_patches(settings, checkpoint.config),
        )

    def layout(self, width: int, height: int) -> Layout:
        rows, columns = self._arrangement(width, height)
        before = list(self.markers.before(rows, columns))
        features = len(before) * self.settings.image_seq_len
        return Layout(
            grid=(1, rows, columns),
            tokens=features + sum(map(len, before)) + len(self.markers.end),
            features=features,
            payload={GRID: [[1, rows, columns]]},
        )

    def expansion(self, image: ImageDescriptor) -> npt.NDArray[np.int32]:
        _, rows, columns = (image.payload.get(GRID) or [[1, 0, 0]])[0]
        before = list(self.markers.before(rows, columns))
        length = self.settings.image_seq_len
        if image.tokens != len(before) * length + sum(map(len, before)) + len(self.markers.end):
            raise GridError(
                f"its payload is {str(image.payload)[:128]}, it is said to take {image.tokens} tokens",
                remedy="Make descriptors with the describe() of the family that serves the model",
            )
        tokens = super().expansion(image)
        place = 0
        for marker in before:
            tokens[place : place + len(marker)] = marker
            place += len(marker) + length
        tokens[place:] = self.markers.end
        return tokens

    def join(self, parts: Sequence[Arrays]) -> Arrays:
        """All tiles of all pictures in one row, as for several images of one prompt."""
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}

    def cost(self, layout: Layout) -> int:
        return self._pictures(layout) * self.tile_patches

    def pixel_bytes(self, image: ImageRef) -> int:
        pictures = self._pictures(self.layout(image.width, image.height))
        return pictures * CHANNELS * self.settings.tile**2 * np.dtype(np.float32).itemsize

    def _pictures(self, layout: Layout) -> int:
        return layout.features // self.settings.image_seq_len

    def _arrangement(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of tiles."""
        _, tall, wide = self._sides(width, height)
        return tall // self.settings.tile, wide // self.settings.tile

    def _sides(self, width: int, height: int) -> tuple[tuple[int, int], int, int]:
        """What the picture is resized to: first its edges, then whole tiles."""
        settings = self.settings
        check_sides(width, height)
        edges = _edges(width, height, settings.longest_edge)
        if not settings.do_image_splitting:
            return edges, settings.tile, settings.tile
        tall, wide = _whole(*edges, settings.tile)
        if 0 in (tall, wide):
            raise LayoutError(
                f"an image of {width}x{height} pixels is too thin: a side rounds to nothing",
                remedy="Crop or pad it; the model's own processor fails too",
            )
        return edges, tall, wide

    def _sizes(self, layout: Layout) -> Sequence[tuple[int, int]]:
        tile = self.settings.tile
        _, rows, columns = layout.grid
        return [(rows * tile, columns * tile), *([(tile, tile)] if rows * columns > 1 else [])]

    def _canvases(self, rgb: Rgb, layout: Layout) -> Iterator[Rgb]:
        settings = self.settings
        height, width, _ = rgb.shape
        edges, tall, wide = self._sides(width, height)
        whole = settings.resize(settings.resize(rgb, *edges), tall, wide)
        yield whole
        if layout.grid != (1, 1, 1):
            yield settings.resize(whole, settings.tile, settings.tile)

    def _arrays(self, values: Sequence[Values], layout: Layout) -> Arrays:
        side = self.settings.tile
        tiles = np.concatenate(values).reshape(1, self._pictures(layout), CHANNELS, side, side)
        # Tiles are full, so the mask is one number, however large it looks.
        mask = np.broadcast_to(np.ones((), np.int64), (1, tiles.shape[1], *tiles.shape[3:]))
        tiled = 0 if layout.grid == (1, 1, 1) else 1
        rows, columns = (np.array([[side * tiled]], np.int64) for side in layout.grid[1:])
        return {"pixel_values": tiles, "pixel_attention_mask": mask, "rows": rows, "cols": columns}


def _edges(width: int, height: int, longest: int) -> tuple[int, int]:
    """Height and width with the longest edge set and the other made even, in the processor's own floating point."""
    ratio = width / height
    if width >= height:
        tall, wide = int(longest / ratio), longest
        tall = max(1, tall + tall % 2)
    else:
        tall, wide = longest, int(longest * ratio)
        wide = max(1, wide + wide % 2)
    ratio = wide / tall
    if wide >= tall and wide > MAX_EDGE:
        tall, wide = max(1, int(MAX_EDGE / ratio)), MAX_EDGE
    elif tall > MAX_EDGE:
        tall, wide = MAX_EDGE, max(1, int(MAX_EDGE * ratio))
    return tall, wide


def _whole(tall: int, wide: int, tile: int) -> tuple[int, int]:
    """Height and width grown to whole tiles, the longer side first."""
    ratio = wide / tall
    if wide >= tall:
        wide = -(-wide // tile) * tile
        return -(-int(wide / ratio) // tile) * tile, wide
    tall = -(-tall // tile) * tile
    return tall, -(-int(tall * ratio) // tile) * tile


def _settings(section: Section, joint: Section) -> Idefics3Settings:
    default = Idefics3Settings()
    check_processor(section, PROCESSORS, switches={"do_resize": True, "do_pad": True})
    return Idefics3Settings(
        longest_edge=_longest(section, "size", default.longest_edge),
        tile=_longest(section, "max_image_size", default.tile),
        do_image_splitting=section.flag("do_image_splitting", default.do_image_splitting),
        image_seq_len=joint.whole("image_seq_len", default.image_seq_len),
        **read_tones(section, default),
    )


def _longest(section: Section, key: str, default: int) -> int:
    size = section.section(key, {"longest_edge": default})
    if size.values.keys() != {"longest_edge"}:
        raise CheckpointError(
            f"{section.file}: {key} has {', '.join(map(str, size.values))[:64]}",
            remedy="filmroll computes layouts for longest_edge alone",
        )
    return size.whole("longest_edge")


def _check_padding(settings: Idefics3Settings, section: Section) -> None:
    """The model takes a tile whose values are all 0 for padding, and drops it."""
    if (settings.table() == 0).any(axis=1).all():
        raise CheckpointError(
            f"{section.file}: one color becomes 0 in every channel, and the model drops tiles that are all 0",
            remedy="Normalize by the mean and deviation that the model was trained with",
        )


def _tile_patches(settings: Idefics3Settings, config: Section) -> int:
    """Patches of a tile; pixel shuffling makes as many features of them as the placeholder has tokens."""
    scale = config.whole("scale_factor", 2)
    side = settings.tile // config.section("vision_config", {}).whole("patch_size", 32)
    if side % scale or side**2 // scale**2 != settings.image_seq_len:
        raise CheckpointError(
            f"{config.file}: a tile has {side}x{side} patches and scale_factor is {scale}, image_seq_len is "
            f"{settings.image_seq_len}",
            remedy="The files are not of one checkpoint; fetch them again",
        )
    return side**2
