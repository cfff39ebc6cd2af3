"""Gemma 4: pictures resized, up or down, to as many patches as a budget allows, keeping their shape.

Patches have their channels last, and the arrays of every picture are padded to the whole budget, with
position -1 where there is no patch. The tower pools `pooling_kernel_size` squared patches into one soft
token; the unified models have no tower, and their processor, of which there is only one for torchvision,
merges those patches itself. Placeholder: begin of image, the soft tokens, end of image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from filmroll.errors import CheckpointError
from filmroll.families.base import Arrays, Family, ForwardPolicy, Layout, Placeholders, Rgb, check_sides
from filmroll.families.checkpoint import Checkpoint, Section
from filmroll.families.recipe import Tones, check_processor, fingerprint, read_tones, recipe
from filmroll.image import ImageRef
from filmroll.pixels.patches import CHANNELS, Channels, Cut, Values
from filmroll.wire.descriptor import ImageDescriptor

UNIFIED = "gemma4_unified"
PROCESSORS = {
    "gemma4": ("Gemma4ImageProcessor", "Gemma4ImageProcessorFast", "Gemma4ImageProcessorPil"),
    UNIFIED: ("Gemma4UnifiedImageProcessor", "Gemma4UnifiedImageProcessorFast"),
}
BUDGETS = (70, 140, 280, 560, 1120)
"""The numbers of soft tokens that the processor accepts."""
LAYOUT = ("max_soft_tokens", "patch_size", "pooling_kernel_size")
TOKENS = {
    "boi_token_id": ("<|image>", 255999),
    "image_token_id": ("<|image|>", 258880),
    "eoi_token_id": ("<image|>", 258882),
    "video_token_id": ("<|video|>", 258884),
    "audio_token_id": ("<|audio|>", 258881),
}
"""The keys of config.json: how their tokens are spelled, and the ids where the keys are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma4Settings(Tones):
    """The image processor's numbers; the defaults are those of its class in transformers."""

    patch_size: int = 16
    max_soft_tokens: int = 280
    pooling_kernel_size: int = 3
    do_normalize: bool = False
    image_mean: Channels = (0.0, 0.0, 0.0)
    image_std: Channels = (1.0, 1.0, 1.0)
    merged: bool = False
    """Whether what is cut are soft tokens, and not patches that the tower pools."""

    @property
    def unit(self) -> int:
        """Sides are multiples of this: one soft token's pixels."""
        return self.patch_size * self.pooling_kernel_size

    @property
    def side(self) -> int:
        """What is cut has this side."""
        return self.unit if self.merged else self.patch_size

    @property
    def budget(self) -> int:
        """How many of that every picture's arrays have room for."""
        return self.max_soft_tokens * (self.unit // self.side) ** 2


class Gemma4(Family):
    name = "gemma4"
    model_types: ClassVar[tuple[str, ...]] = tuple(PROCESSORS)
    vllm_names: ClassVar[Mapping[str, str]] = MappingProxyType({"image_position_ids": "pixel_position_ids"})

    def __init__(self, settings: Gemma4Settings, *, placeholders: Placeholders, ends: tuple[int, int]) -> None:
        """`ends` are the tokens before and after the soft tokens of an image."""
        self.settings = settings
        self.placeholders = placeholders
        self.renderer = None
        # No packing, for the reason that Gemma 3 has.
        self.forward = ForwardPolicy(marks="mm_token_type_ids", unused=("num_soft_tokens_per_image",), caps=True)
        self.fingerprint = fingerprint(self.name, {key: getattr(settings, key) for key in LAYOUT})
        self.recipe = recipe(self.name, asdict(settings))
        self.cut = Cut((settings.side, settings.side), channels_last=True)
        self._ends = ends
        super().__init__(settings.table())

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        settings = _settings(checkpoint.processor, checkpoint.model_type)
        _check_tower(settings, checkpoint.config)
        ids = _tokens(checkpoint)
        texts = tuple(spelling for spelling, _ in TOKENS.values())
        placeholders = Placeholders(image=ids["image_token_id"], unsampled=tuple(ids.values()), texts=texts)
        return cls(settings, placeholders=placeholders, ends=(ids["boi_token_id"], ids["eoi_token_id"]))

    def layout(self, width: int, height: int) -> Layout:
        rows, columns = (side // self.settings.side for side in _fit(width, height, self.settings))
        features = rows * columns * self.settings.max_soft_tokens // self.settings.budget
        return Layout(
            grid=(1, rows, columns),
            tokens=features + len(self._ends),
            features=features,
            payload={"image_grid_thw": [[1, rows, columns]]},
        )

    def _sizes(self, layout: Layout) -> Sequence[tuple[int, int]]:
        _, rows, columns = layout.grid
        return [(rows * self.settings.side, columns * self.settings.side)]

    def _canvases(self, rgb: Rgb, layout: Layout) -> Iterable[Rgb]:
        return [self.settings.resize(rgb, *size) for size in self._sizes(layout)]

    def _arrays(self, values: Sequence[Values], layout: Layout) -> Arrays:
        (patches,) = values
        count, budget = len(patches), self.settings.budget
        pixel_values = np.zeros((1, budget, patches[0].size), patches.dtype)
        pixel_values[0, :count] = patches.reshape(count, -1)
        positions = np.full((1, budget, 2), -1, np.int64)
        positions[0, :count] = np.indices(layout.grid[1:])[::-1].reshape(2, -1).T
        return {
            "pixel_values": pixel_values,
            "image_position_ids": positions,
            "num_soft_tokens_per_image": np.array([layout.features], np.int64),
        }

    def expansion(self, image: ImageDescriptor) -> npt.NDArray[np.int32]:
        tokens = super().expansion(image)
        tokens[:1], tokens[-1:] = self._ends
        return tokens

    def cost(self, layout: Layout) -> int:  # noqa: ARG002
        """The model runs over the whole budget, padding included."""
        return self.settings.budget

    def pixel_bytes(self, image: ImageRef) -> int:  # noqa: ARG002
        return self.settings.max_soft_tokens * self.settings.unit**2 * CHANNELS * np.dtype(np.float32).itemsize


def _fit(width: int, height: int, settings: Gemma4Settings) -> tuple[int, int]:
    """The height and width that the picture is resized to, in the processor's own order of floating point."""
    check_sides(width, height)
    unit, area = settings.unit, settings.max_soft_tokens * settings.unit**2
    scale = math.sqrt(area / (height * width))
    tall, wide = (math.floor(scale * side / unit) * unit for side in (height, width))
    # A side that rounds to nothing becomes one soft token, and the other as many as it is times as long.
    if tall == 0:
        tall, wide = unit, min(width // height, settings.max_soft_tokens) * unit
    elif wide == 0:
        tall, wide = min(height // width, settings.max_soft_tokens) * unit, unit
    return tall, wide


def _settings(section: Section, model_type: str) -> Gemma4Settings:
    merged = model_type == UNIFIED
    default = Gemma4Settings(merged=merged, backend="torchvision" if merged else "pil")
    # Padding is zeros whatever the mean: levels could not be normalized late, and no released model does it.
    check_processor(section, PROCESSORS[model_type], switches={"do_resize": True, "do_normalize": False})
    budget = section.whole("max_soft_tokens", default.max_soft_tokens)
    if budget not in BUDGETS:
        raise CheckpointError(
            f"{section.file}: max_soft_tokens is {budget}", remedy=f"It must be one of {BUDGETS}; correct the file"
        )
    tones = read_tones(section, default)
    if merged and tones["backend"] != default.backend:
        raise CheckpointError(
            f"models of the type {UNIFIED} have no image processor for {tones['backend']}",
            remedy=f"Ask for {default.backend}, or for nothing",
        )
    return Gemma4Settings(
        patch_size=section.whole("patch_size", default.patch_size),
        max_soft_tokens=budget,
        pooling_kernel_size=section.whole("pooling_kernel_size", default.pooling_kernel_size),
        merged=merged,
        **tones,
    )


def _check_tower(settings: Gemma4Settings, config: Section) -> None:
    """The model cuts and pools as the processor does, and has a position for everything that is cut."""
    tower = config.section("vision_config", {})
    for key in ("patch_size", "pooling_kernel_size"):
        value, ours = tower.whole(key, getattr(Gemma4Settings(), key)), getattr(settings, key)
        if value != ours:
            raise CheckpointError(
                f"{config.file} has vision_config.{key} {value}, the image processor has {ours}",
                remedy="The two files are not of one checkpoint; fetch both again",
            )
    key, default = ("mm_posemb_size", 1120) if settings.merged else ("position_embedding_size", 10240)
    positions, longest = tower.whole(key, default), settings.max_soft_tokens * settings.unit // settings.side
    if positions < longest:
        raise CheckpointError(
            f"{config.file} has vision_config.{key} {positions}, the image processor needs {longest}",
            remedy="Lower max_soft_tokens of the image processor",
        )


def _tokens(checkpoint: Checkpoint) -> dict[str, int]:
    """The ids by their keys; what the processor writes around images, the tokenizer must read as these ids."""
    ids = {key: checkpoint.config.whole(key, default, least=0) for key, (_, default) in TOKENS.items()}
    for key in ("boi_token_id", "image_token_id", "eoi_token_id"):
        spelling, _ = TOKENS[key]
        if checkpoint.token(spelling) != ids[key]:
            raise CheckpointError(
                f"{checkpoint.config.file}: {key} is {ids[key]}, which is not the tokenizer's {spelling}",
                remedy="The two files are not of one checkpoint; fetch both again",
            )
    return ids
