"""Qwen2-VL to Qwen3.8: sides rounded to whole merged patches between two bounds on the area.

The whole line is served by one image processor, transformers' Qwen2VLImageProcessor, whose PIL
backend this file equals. Placeholder: one token per merge x merge patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from filmroll.families.checkpoint import Checkpoint, Section
from filmroll.families.grid import GridFamily, GridSettings, check_tower, fit_area, read_placeholders
from filmroll.families.recipe import check_processor, read_tones

PROCESSORS = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")
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
RECURRENT = ("qwen3_5", "qwen3_5_moe")
"""Their linear attention carries what it has read from one sample of a row to the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenVLSettings(GridSettings):
    """The defaults are those of the image processor's class in transformers."""

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280


class QwenVL(GridFamily):
    name = "qwen_vl"
    line = "Qwen-VL"
    model_types: ClassVar[tuple[str, ...]] = tuple(TOKEN_DEFAULTS)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        settings = _settings(checkpoint.processor)
        check_tower(settings, checkpoint.config)
        placeholders = read_placeholders(checkpoint.config, TOKENS, TEXTS, TOKEN_DEFAULTS[checkpoint.model_type])
        return cls(
            settings,
            placeholders=placeholders,
            renderer=_renderer(checkpoint),
            packs=checkpoint.model_type not in RECURRENT,
        )

    def _fit(self, width: int, height: int) -> tuple[int, int]:
        self._check_ratio(width, height)
        return fit_area(height, width, self.settings)


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
