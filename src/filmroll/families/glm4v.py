"""GLM-4.1V to GLM-4.6V: Qwen2-VL's arithmetic, with bounds on the area of all frames and no side below a token's.

Served by two image processors of transformers, Glm4vImageProcessor and Glm46VImageProcessor, which
compute the same. Placeholder: one token per merge x merge patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from filmroll.families.checkpoint import Checkpoint, Section
from filmroll.families.grid import GridFamily, GridSettings, check_tower, fit_area, read_placeholders
from filmroll.families.recipe import check_processor, read_tones

_NAMES = ("Glm4vImageProcessor", "Glm46VImageProcessor")
PROCESSORS = tuple(name + backend for name in _NAMES for backend in ("", "Fast", "Pil"))
TOKENS = (
    "image_token_id",
    "video_token_id",
    "image_start_token_id",
    "image_end_token_id",
    "video_start_token_id",
    "video_end_token_id",
)
TEXTS = ("<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")
TOKEN_DEFAULTS = {
    "glm4v": (151343, 151344, 151339, 151340, 151341, 151342),
    "glm4v_moe": (151363, 151364, 151339, 151340, 151341, 151342),
    "glm46v": (151343, 151344, 151339, 151340, 151361, 151362),
}
"""Each model type's ids where its config.json leaves them out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Glm4vSettings(GridSettings):
    """The defaults are those of the image processors' classes in transformers."""

    min_pixels: int = 112 * 112
    max_pixels: int = 28 * 28 * 15000


class Glm4v(GridFamily):
    name = "glm4v"
    line = "GLM-V"
    model_types: ClassVar[tuple[str, ...]] = tuple(TOKEN_DEFAULTS)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        settings = _settings(checkpoint.processor)
        check_tower(settings, checkpoint.config)
        placeholders = read_placeholders(checkpoint.config, TOKENS, TEXTS, TOKEN_DEFAULTS[checkpoint.model_type])
        return cls(settings, placeholders=placeholders)

    def _fit(self, width: int, height: int) -> tuple[int, int]:
        unit = self.settings.unit
        if min(width, height) < unit:
            grow = max(unit / height, unit / width)
            width, height = int(width * grow), int(height * grow)
        self._check_ratio(width, height)
        return fit_area(height, width, self.settings, frames=self.settings.temporal_patch_size)


def _settings(section: Section) -> Glm4vSettings:
    default = Glm4vSettings()
    check_processor(section, PROCESSORS, switches={"do_resize": True})
    # A size is taken whole: the processor itself refuses one that lacks an edge.
    size = section.section("size", {"shortest_edge": default.min_pixels, "longest_edge": default.max_pixels})
    return Glm4vSettings(
        patch_size=section.whole("patch_size", default.patch_size),
        merge_size=section.whole("merge_size", default.merge_size),
        temporal_patch_size=section.whole("temporal_patch_size", default.temporal_patch_size),
        min_pixels=size.whole("shortest_edge"),
        max_pixels=size.whole("longest_edge"),
        **read_tones(section, default),
    )
