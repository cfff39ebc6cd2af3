"""Gemma 3: every picture resized to one square, whatever its shape; one fixed number of soft tokens.

The chat template writes <start_of_image>; the processor puts two newlines on each side of it and the
soft tokens and <end_of_image> after it. Newlines are text, which merges with what stands beside it, so
they belong to the prompt's text (`prompt_text`) and the rest to the placeholder.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from filmroll.errors import CheckpointError
from filmroll.families.base import Arrays, Family, ForwardPolicy, Layout, Placeholders, Rgb, check_sides
from filmroll.families.checkpoint import Checkpoint, Section
from filmroll.families.grid import read_placeholders
from filmroll.families.recipe import BILINEAR, HALF, Tones, check_processor, fingerprint, read_tones, recipe
from filmroll.image import ImageRef
from filmroll.pixels.patches import CHANNELS, Channels, Cut, Values
from filmroll.wire.descriptor import ImageDescriptor

PROCESSORS = ("Gemma3ImageProcessor", "Gemma3ImageProcessorFast", "Gemma3ImageProcessorPil")
TOKENS = ("image_token_index", "boi_token_index", "eoi_token_index")
TEXTS = ("<image_soft_token>", "<start_of_image>", "<end_of_image>")
TOKEN_DEFAULTS = (262144, 255999, 256000)
SOFT_TOKENS = 256
TOWER_SIDE, TOWER_PATCH = 224, 16
"""What transformers takes for a vision tower whose config.json does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma3Settings(Tones):
    """The image processor's numbers; the defaults are those of its class in transformers."""

    resample: int = BILINEAR
    image_mean: Channels = HALF
    image_std: Channels = HALF
    height: int = 224
    width: int = 224


class Gemma3(Family):
    name = "gemma3"
    model_types: ClassVar[tuple[str, ...]] = ("gemma3",)

    def __init__(self, settings: Gemma3Settings, *, placeholders: Placeholders, soft_tokens: int, patch: int) -> None:
        """`soft_tokens` take a feature for each image; `patch` is the side of a patch in the vision tower."""
        self.settings = settings
        self.placeholders = placeholders
        self.renderer = None
        # The soft tokens of one image see each other in both directions, by these marks. In a packed row transformers
        # 5.23 reads the marks of its layers with a sliding window at positions within the sample: those of another.
        self.forward = ForwardPolicy(marks="token_type_ids", unused=("num_crops",))
        self.fingerprint = fingerprint(
            self.name,
            {"height": settings.height, "width": settings.width, "patch_size": patch, "soft_tokens": soft_tokens},
        )
        self.recipe = recipe(self.name, asdict(settings))
        self.cut = Cut()
        self._soft_tokens, self._patch = soft_tokens, patch
        super().__init__(settings.table())

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        settings = _settings(checkpoint.processor)
        return cls(
            settings,
            placeholders=_placeholders(checkpoint.config),
            soft_tokens=_soft_tokens(checkpoint),
            patch=_patch(settings, checkpoint.config),
        )

    def layout(self, width: int, height: int) -> Layout:
        check_sides(width, height)
        rows, columns = self.settings.height // self._patch, self.settings.width // self._patch
        return Layout(
            grid=(1, rows, columns),
            tokens=self._soft_tokens + 2,
            features=self._soft_tokens,
            payload={"image_grid_thw": [[1, rows, columns]]},
        )

    def _sizes(self, layout: Layout) -> Sequence[tuple[int, int]]:  # noqa: ARG002
        return [(self.settings.height, self.settings.width)]

    def _canvases(self, rgb: Rgb, layout: Layout) -> Iterable[Rgb]:
        return [self.settings.resize(rgb, *size) for size in self._sizes(layout)]

    def _arrays(self, values: Sequence[Values], layout: Layout) -> Arrays:  # noqa: ARG002
        (picture,) = values
        return {"pixel_values": picture.squeeze(2), "num_crops": np.zeros(1, np.int64)}

    def expansion(self, image: ImageDescriptor) -> npt.NDArray[np.int32]:
        tokens = super().expansion(image)
        tokens[:1], tokens[-1:] = self.placeholders.unsampled[1:]
        return tokens

    def prompt_text(self, text: str) -> str:
        _, logical, _ = TEXTS
        return text.replace(logical, f"\n\n{logical}\n\n")

    def cost(self, layout: Layout) -> int:
        _, rows, columns = layout.grid
        return rows * columns

    def pixel_bytes(self, image: ImageRef) -> int:  # noqa: ARG002
        return CHANNELS * self.settings.height * self.settings.width * np.dtype(np.float32).itemsize


def _settings(section: Section) -> Gemma3Settings:
    default = Gemma3Settings()
    # Crops beside the picture: the processor of images and text makes them only where a call asks, whatever the file.
    check_processor(section, PROCESSORS, switches={"do_resize": True, "do_pan_and_scan": False})
    height, width = section.pair("size", (default.height, default.width))
    return Gemma3Settings(height=height, width=width, **read_tones(section, default))


def _placeholders(config: Section) -> Placeholders:
    tokens = read_placeholders(config, TOKENS, TEXTS, TOKEN_DEFAULTS)
    _, begin, _ = tokens.unsampled
    return replace(tokens, logical=begin)


def _soft_tokens(checkpoint: Checkpoint) -> int:
    """As many as the model makes features of an image, and as the processor writes tokens for it."""
    made = checkpoint.config.whole("mm_tokens_per_image", SOFT_TOKENS)
    written = checkpoint.joint.whole("image_seq_length", SOFT_TOKENS)
    if made != written:
        raise CheckpointError(
            f"{checkpoint.config.file} has mm_tokens_per_image {made}, "
            f"{checkpoint.joint.file} has image_seq_length {written}",
            remedy="The two files are not of one checkpoint; fetch both again",
        )
    return made


def _patch(settings: Gemma3Settings, config: Section) -> int:
    """The tower's patch side; a tower for pictures of another size is refused."""
    tower = config.section("vision_config", {})
    side = tower.whole("image_size", TOWER_SIDE)
    if (settings.height, settings.width) != (side, side):
        raise CheckpointError(
            f"{config.file} has vision_config.image_size {side}, "
            f"the image processor makes {settings.height}x{settings.width} of every picture",
            remedy="The two files are not of one checkpoint; fetch both again",
        )
    return tower.whole("patch_size", TOWER_PATCH)
