"""Kimi K2.5 and K2.6: pictures shrunk to a number of patches, never enlarged, and padded to whole merged patches.

Two processors read such a checkpoint. The one that is released with it (`media_proc_cfg` in its file)
resizes with Pillow; the one of transformers exists with torchvision alone, and so does our equal of it.
Placeholder: one token per merge x merge patches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np

from filmroll.errors import CheckpointError
from filmroll.families.base import Arrays, Family, ForwardPolicy, Layout, Placeholders, Rgb, check_sides
from filmroll.families.checkpoint import Checkpoint, Section
from filmroll.families.recipe import (
    BACKEND,
    HALF,
    Backend,
    Tones,
    check_processor,
    fingerprint,
    first_fingerprint,
    read_tones,
    recipe,
)
from filmroll.image import ImageRef
from filmroll.pixels.patches import CHANNELS, Channels, Cut, Values

RELEASED = "media_proc_cfg"
"""The key of the processor that is released with the checkpoints."""
RELEASED_PROCESSORS = ("KimiK25VisionProcessor",)
PROCESSORS = ("Kimi_K25ImageProcessor", "Kimi_K25ImageProcessorFast")
LAYOUT = (
    "patch_size",
    "merge_kernel_size",
    "in_patch_limit",
    "patch_limit_on_one_side",
    "fixed_output_tokens",
    "image_mean",
    "image_std",
)
"""What other systems put into the fingerprint."""
TEXTS = ("<|media_pad|>", "<|kimi_k25_video_placeholder|>", "<|media_begin|>", "<|media_end|>")
TOKENS = {
    "image_token_id": 163605,
    "video_token_id": 163840,
    "vision_start_token_id": 163602,
    "vision_end_token_id": 163604,
}
"""The keys of config.json that hold the ids of TEXTS, in the same order, and the ids where they are left out."""
RELEASED_IMAGE_TOKEN = "media_placeholder_token_id"  # noqa: S105
"""What the released config.json calls image_token_id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KimiSettings(Tones):
    """The image processor's numbers, by their released names; limits are in patches before merging."""

    backend: Backend = "torchvision"
    patch_size: int = 14
    merge_kernel_size: int = 2
    in_patch_limit: int = 16384
    patch_limit_on_one_side: int = 512
    fixed_output_tokens: int | None = None
    image_mean: Channels = HALF
    image_std: Channels = HALF


class KimiK25(Family):
    name = "kimi_k25"
    model_types: ClassVar[tuple[str, ...]] = ("kimi_k25",)
    vllm_modality: ClassVar[str | None] = "vision_chunk"
    vllm_names: ClassVar[Mapping[str, str]] = MappingProxyType({"image_grid_thw": "grid_thws"})

    def __init__(self, settings: KimiSettings, *, placeholders: Placeholders) -> None:
        self.settings = settings
        self.placeholders = placeholders
        self.renderer = "kimi-k2.5"
        self.forward = ForwardPolicy(grid="image_grid_thw", packs=True)
        numbers = {key: getattr(settings, key) for key in LAYOUT}
        self.fingerprint = fingerprint(self.name, numbers)
        self.first_fingerprint = first_fingerprint(self.name, numbers)
        self.recipe = recipe(self.name, asdict(settings))
        self.cut = Cut((settings.patch_size, settings.patch_size))
        super().__init__(settings.table())

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        settings = _settings(checkpoint.processor)
        _check_tower(settings, checkpoint.config)
        return cls(settings, placeholders=_placeholders(checkpoint.config))

    def layout(self, width: int, height: int) -> Layout:
        settings = self.settings
        rows, columns = (_ceil(side, settings) // settings.patch_size for side in _fit(width, height, settings))
        merged = rows * columns // settings.merge_kernel_size**2
        tokens = merged if settings.fixed_output_tokens is None else settings.fixed_output_tokens
        return Layout(
            grid=(1, rows, columns), tokens=tokens, features=tokens, payload={"grid_thws": [[1, rows, columns]]}
        )

    def _sizes(self, layout: Layout) -> Sequence[tuple[int, int]]:
        _, rows, columns = layout.grid
        return [(rows * self.settings.patch_size, columns * self.settings.patch_size)]

    def _canvases(self, rgb: Rgb, layout: Layout) -> Iterable[Rgb]:
        height, width, _ = rgb.shape
        picture = self.settings.resize(rgb, *_fit(width, height, self.settings))
        (size,) = self._sizes(layout)
        canvas = np.zeros((*size, CHANNELS), np.uint8)
        canvas[: picture.shape[0], : picture.shape[1]] = picture
        return [canvas]

    def _arrays(self, values: Sequence[Values], layout: Layout) -> Arrays:
        (patches,) = values
        patch = self.settings.patch_size
        return {
            "pixel_values": patches.reshape(len(patches), CHANNELS, patch, patch),
            "image_grid_thw": np.array([layout.grid], np.int64),
        }

    def cost(self, layout: Layout) -> int:
        return math.prod(layout.grid)

    def pixel_bytes(self, image: ImageRef) -> int:
        patch = CHANNELS * self.settings.patch_size**2
        return self.cost(self.layout(image.width, image.height)) * patch * np.dtype(np.float32).itemsize


def _fit(width: int, height: int, settings: KimiSettings) -> tuple[int, int]:
    """The height and width that the picture is resized to, before padding, in the processor's own floating point."""
    check_sides(width, height)
    patch = settings.patch_size
    most = settings.patch_limit_on_one_side * patch
    patches = max(1.0, width // patch) * max(1.0, height // patch)
    scale = min(1.0, math.sqrt(settings.in_patch_limit / patches), most / width, most / height)
    tall, wide = (min(max(1, int(side * scale)), most) for side in (height, width))
    return tall, wide


def _ceil(side: int, settings: KimiSettings) -> int:
    unit = settings.patch_size * settings.merge_kernel_size
    return -(-side // unit) * unit


def _settings(section: Section) -> KimiSettings:
    """The released form, the one of transformers, or a file that holds both and means the same."""
    if not section.has(RELEASED):
        return _native(section)
    released = _released(section)
    if section.text("image_processor_type", RELEASED_PROCESSORS[0]) not in PROCESSORS:
        check_processor(section, RELEASED_PROCESSORS, switches={})
        return released
    native = _native(section)
    if any(getattr(native, key) != getattr(released, key) for key in LAYOUT):
        raise CheckpointError(
            f"{section.file}: {RELEASED} and the settings beside it contradict each other",
            remedy="Remove the one that the model was not trained with",
        )
    return native


def _released(section: Section) -> KimiSettings:
    default = KimiSettings(backend="pil")
    own = section.section(RELEASED)
    names = ("patch_size", "merge_kernel_size", "in_patch_limit", "patch_limit_on_one_side")
    numbers: dict[str, Any] = {name: own.whole(name, getattr(default, name)) for name in names}
    if own.has("fixed_output_tokens"):
        numbers["fixed_output_tokens"] = own.whole("fixed_output_tokens")
    asked = {BACKEND: section.values.get(BACKEND)}
    return KimiSettings(**numbers, **read_tones(replace(own, values=own.values | asked), default))


def _native(section: Section) -> KimiSettings:
    default = KimiSettings()
    check_processor(section, PROCESSORS, switches={"do_resize": True})
    side = section.section("size", dict.fromkeys(("max_height", "max_width"), default.patch_limit_on_one_side))
    most = side.whole("max_height")
    if side.whole("max_width") != most:
        raise CheckpointError(f"{section.file}: size.max_height and size.max_width differ", remedy="Correct the file")
    return KimiSettings(
        patch_size=section.whole("patch_size", default.patch_size),
        merge_kernel_size=section.whole("merge_size", default.merge_kernel_size),
        in_patch_limit=section.whole("max_patches", default.in_patch_limit),
        patch_limit_on_one_side=most,
        **read_tones(section, default),
    )


def _check_tower(settings: KimiSettings, config: Section) -> None:
    """The vision tower cuts and merges as the processor does, or its weights would read other pixels."""
    tower = config.section("vision_config", {})
    for name in ("patch_size", "merge_kernel_size"):
        value, ours = tower.values.get(name), getattr(settings, name)
        if value not in (None, ours, [ours, ours]):
            raise CheckpointError(
                f"{config.file} has vision_config.{name} {str(value)[:64]}, the image processor has {ours}",
                remedy="The two files are not of one checkpoint; fetch both again",
            )


def _placeholders(config: Section) -> Placeholders:
    ids = {key: config.whole(key, default, least=0) for key, default in TOKENS.items()}
    if config.has(RELEASED_IMAGE_TOKEN):
        image = config.whole(RELEASED_IMAGE_TOKEN, least=0)
        if config.has("image_token_id") and ids["image_token_id"] != image:
            raise CheckpointError(
                f"{config.file}: image_token_id is {ids['image_token_id']}, {RELEASED_IMAGE_TOKEN} is {image}",
                remedy="They are one token; correct the file",
            )
        ids["image_token_id"] = image
    if len(set(ids.values())) < len(ids):
        raise CheckpointError(f"{config.file} gives two of {', '.join(TOKENS)} the same id", remedy="Correct the file")
    # The video token of the class's defaults is one beyond the released vocabulary: there is no such logit.
    vocabulary = config.section("text_config", {}).whole("vocab_size", max(ids.values()) + 1)
    return Placeholders(
        image=ids["image_token_id"],
        unsampled=tuple(token for token in ids.values() if token < vocabulary),
        texts=TEXTS,
    )
