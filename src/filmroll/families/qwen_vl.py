"""Qwen2-VL to Qwen3.8: sides rounded to whole merged patches between two bounds on the area.

The whole line is served by one image processor, transformers' Qwen2VLImageProcessor, whose PIL
backend this file equals. Placeholder: one token per merge x merge patches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Self

import numpy as np

from filmroll.errors import CheckpointError, LayoutError
from filmroll.families.base import Arrays, Family, ForwardPolicy, Layout, Placeholders, Rgb
from filmroll.families.checkpoint import Checkpoint, Section
from filmroll.families.recipe import Tones, check_processor, fingerprint, read_tones, recipe
from filmroll.image import ImageRef
from filmroll.pixels.patches import CHANNELS, Cut, Values
from filmroll.pixels.resize import resize

PROCESSORS = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")
MAX_ASPECT_RATIO = 200
LAYOUT = ("max_pixels", "merge_size", "min_pixels", "patch_size", "temporal_patch_size")
"""What other systems put into the fingerprint."""
TEXTS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
"""The keys of config.json that hold the ids of TEXTS, in the same order."""

_QWEN2_IDS = (151655, 151656, 151652, 151653)
_QWEN3_5_IDS = (248056, 248057, 248053, 248054)
TOKEN_DEFAULTS = {
    "qwen2_vl": _QWEN2_IDS,
    "qwen2_5_vl": _QWEN2_IDS,
    "qwen3_vl": _QWEN2_IDS,
    "qwen3_vl_moe": _QWEN2_IDS,
    "qwen3_5": _QWEN3_5_IDS,
    "qwen3_5_moe": _QWEN3_5_IDS,
}
"""Each model type's ids where its config.json leaves them out; Qwen3.6 and 3.8 have Qwen3.5's model types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenVLSettings(Tones):
    """The image processor's numbers; the defaults are those of its class in transformers."""

    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280


class QwenVL(Family):
    name = "qwen_vl"
    model_types: ClassVar[tuple[str, ...]] = tuple(TOKEN_DEFAULTS)

    def __init__(self, settings: QwenVLSettings, *, placeholders: Placeholders, renderer: str | None = None) -> None:
        self.settings = settings
        self.placeholders = placeholders
        self.renderer = renderer
        # Every model of the line takes its positions from mm_token_type_ids; some fail without, some go on wrongly.
        self.forward = ForwardPolicy(marks="mm_token_type_ids", grid="image_grid_thw")
        self.fingerprint = fingerprint(self.name, {key: getattr(settings, key) for key in LAYOUT})
        self.recipe = recipe(self.name, asdict(settings))
        self.cut = Cut((settings.patch_size, settings.patch_size), settings.merge_size, settings.temporal_patch_size)
        super().__init__(settings.table())

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        settings = _settings(checkpoint.processor)
        _check_tower(settings, checkpoint.config)
        return cls(settings, placeholders=_placeholders(checkpoint), renderer=_renderer(checkpoint))

    def layout(self, width: int, height: int) -> Layout:
        settings = self.settings
        target_height, target_width = _fit(width, height, settings)
        rows, columns = target_height // settings.patch_size, target_width // settings.patch_size
        tokens = rows * columns // settings.merge_size**2
        return Layout(
            grid=(1, rows, columns),
            tokens=tokens,
            features=tokens,
            payload={"image_grid_thw": [[1, rows, columns]]},
        )

    def _canvases(self, rgb: Rgb, layout: Layout) -> Iterable[Rgb]:
        _, rows, columns = layout.grid
        patch = self.settings.patch_size
        return [resize(rgb, rows * patch, columns * patch, self.settings.resample)]

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


def _fit(width: int, height: int, settings: QwenVLSettings) -> tuple[int, int]:
    """The height and width that the picture is resized to.

    The order of the floating point operations and round() to even are the processor's own: a product
    taken in another order lands on another side of a multiple for some sizes.
    """
    if min(width, height) < 1:
        raise LayoutError(f"an image of {width}x{height} pixels has no layout", remedy="Both sides must be at least 1")
    ratio = max(width, height) / min(width, height)
    if ratio > MAX_ASPECT_RATIO:
        raise LayoutError(
            f"an image of {width}x{height} pixels is {ratio:.0f} times as long as wide",
            remedy=f"Models of the Qwen-VL line take at most {MAX_ASPECT_RATIO}; crop or pad it",
        )
    unit = settings.patch_size * settings.merge_size
    tall, wide = round(height / unit) * unit, round(width / unit) * unit
    if tall * wide > settings.max_pixels:
        shrink = math.sqrt((height * width) / settings.max_pixels)
        tall = max(unit, math.floor(height / shrink / unit) * unit)
        wide = max(unit, math.floor(width / shrink / unit) * unit)
    elif tall * wide < settings.min_pixels:
        grow = math.sqrt(settings.min_pixels / (height * width))
        tall = math.ceil(height * grow / unit) * unit
        wide = math.ceil(width * grow / unit) * unit
    return tall, wide


def _settings(section: Section) -> QwenVLSettings:
    default = QwenVLSettings()
    check_processor(section, PROCESSORS, switches={"do_resize": True})
    return QwenVLSettings(
        patch_size=section.whole("patch_size", default.patch_size),
        merge_size=section.whole("merge_size", default.merge_size),
        temporal_patch_size=section.whole("temporal_patch_size", default.temporal_patch_size),
        min_pixels=_bound(section, "min_pixels", "shortest_edge", default.min_pixels),
        max_pixels=_bound(section, "max_pixels", "longest_edge", default.max_pixels),
        **read_tones(section, default),
    )


def _bound(section: Section, name: str, edge: str, default: int) -> int:
    """A bound on the area: by its own name first, else from `size`, else the class's own."""
    if section.has(name):
        return section.whole(name)
    if section.has("size"):
        # A size without this edge is no case for the default: the processor itself refuses to resize by it.
        return section.section("size").whole(edge)
    return default


def _check_tower(settings: QwenVLSettings, config: Section) -> None:
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


def _placeholders(checkpoint: Checkpoint) -> Placeholders:
    defaults = TOKEN_DEFAULTS[checkpoint.model_type]
    ids = tuple(checkpoint.config.whole(key, value, least=0) for key, value in zip(TOKENS, defaults, strict=True))
    if len(set(ids)) < len(ids):
        raise CheckpointError(
            f"{checkpoint.config.file} gives two of {', '.join(TOKENS)} the same id", remedy="Correct the file"
        )
    return Placeholders(image=ids[0], unsampled=ids, texts=TEXTS)


def _renderer(checkpoint: Checkpoint) -> str | None:
    """Qwen3.5, 3.6 and 3.8 share their model types; their chat templates differ by the switches they offer."""
    if checkpoint.model_type in ("qwen3_vl", "qwen3_vl_moe"):
        return "qwen3-vl"
    if checkpoint.model_type not in ("qwen3_5", "qwen3_5_moe"):
        return None
    if "reasoning_effort" in checkpoint.chat_template:
        return "qwen3.8"
    if "preserve_thinking" in checkpoint.chat_template:
        return "qwen3.6"
    return "qwen3.5"
