"""Mistral 3 and Pixtral: pictures within two greatest sides, each side a whole number of merged patches.

The image processor rounds to the patch size that the processor of images and text hands it: that of
the vision tower times the spatial merge. Placeholder: row by row one token per merged patch and
[IMG_BREAK], which is [IMG_END] in the last row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from filmroll.errors import CheckpointError, GridError, LayoutError
from filmroll.families.base import Arrays, Family, ForwardPolicy, Layout, Placeholders, Rgb, check_sides
from filmroll.families.checkpoint import Checkpoint, Section
from filmroll.families.recipe import Tones, check_processor, fingerprint, read_tones, recipe
from filmroll.image import ImageRef
from filmroll.pixels.patches import CHANNELS, Cut, Values
from filmroll.wire.descriptor import ImageDescriptor

PROCESSORS = ("PixtralImageProcessor", "PixtralImageProcessorFast", "PixtralImageProcessorPil")
JOINT_PROCESSOR = "PixtralProcessor"
JOINT_PROCESSORS = {"mistral3": JOINT_PROCESSOR, "llava": "LlavaProcessor"}
"""What transformers takes for each model type where the files name no processor_class."""
LAYOUT = ("patch_size", "spatial_merge_size", "max_height", "max_width")
TOKENS = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
"""The keys of processor_config.json that spell the placeholder's tokens, and the spellings where they are left out."""
IMAGE_TOKEN_IDS = {"mistral3": 10, "llava": 32000}
"""Each model type's id of the image token where its config.json leaves it out."""
GRID = "token_grid"


@dataclass(frozen=True, slots=True, kw_only=True)
class PixtralSettings(Tones):
    """The processors' numbers; the defaults are those of their classes in transformers."""

    patch_size: int = 16
    spatial_merge_size: int = 1
    max_height: int = 1024
    max_width: int = 1024

    @property
    def unit(self) -> int:
        """The side of what becomes one token."""
        return self.patch_size * self.spatial_merge_size


class Pixtral(Family):
    name = "pixtral"
    model_types: ClassVar[tuple[str, ...]] = tuple(IMAGE_TOKEN_IDS)
    cut = Cut()

    def __init__(self, settings: PixtralSettings, *, ids: tuple[int, int, int], texts: tuple[str, ...]) -> None:
        """`ids` and `texts` are those of [IMG], [IMG_BREAK] and [IMG_END]."""
        self.settings = settings
        self.placeholders = Placeholders(image=ids[0], unsampled=ids, texts=texts)
        self.renderer = None
        self.forward = ForwardPolicy(packs=True)
        self.fingerprint = fingerprint(self.name, {key: getattr(settings, key) for key in LAYOUT})
        self.recipe = recipe(self.name, asdict(settings))
        super().__init__(settings.table())

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        _check_classes(checkpoint)
        settings = _settings(checkpoint.processor, checkpoint.joint)
        _check_tower(settings, checkpoint)
        texts = tuple(checkpoint.joint.text(key, default) for key, default in TOKENS.items())
        image, line_end, end = (checkpoint.token(text) for text in texts)
        _check_image_token(checkpoint, image)
        return cls(settings, ids=(image, line_end, end), texts=texts)

    def layout(self, width: int, height: int) -> Layout:
        rows, columns = _fit(width, height, self.settings)
        return Layout(
            grid=(1, rows, columns),
            tokens=rows * (columns + 1),
            features=rows * columns,
            payload={GRID: [[1, rows, columns]]},
        )

    def expansion(self, image: ImageDescriptor) -> npt.NDArray[np.int32]:
        _, rows, columns = (image.payload.get(GRID) or [[1, 0, 0]])[0]
        if rows * (columns + 1) != image.tokens:
            raise GridError(
                f"its payload is {str(image.payload)[:128]}, it is said to take {image.tokens} tokens",
                remedy="Make descriptors with the describe() of the family that serves the model",
            )
        feature, line_end, end = self.placeholders.unsampled
        tokens = np.full((rows, columns + 1), feature, np.int32)
        tokens[:, -1] = line_end
        tokens[-1, -1] = end
        return tokens.reshape(-1)

    def cost(self, layout: Layout) -> int:
        return layout.features * self.settings.spatial_merge_size**2

    def pixel_bytes(self, image: ImageRef) -> int:
        tokens = self.layout(image.width, image.height).features
        return tokens * CHANNELS * self.settings.unit**2 * np.dtype(np.float32).itemsize

    def join(self, parts: Sequence[Arrays]) -> Arrays:
        """Padded to the greatest height and width, as the processor pads: with zeros, after normalizing."""
        if len(parts) == 1:
            return parts[0]
        sizes = np.concatenate([part["image_sizes"] for part in parts])
        first = parts[0]["pixel_values"]
        padded = np.zeros((len(sizes), CHANNELS, *sizes.max(axis=0)), first.dtype)
        pictures = (picture for part in parts for picture in part["pixel_values"])
        for place, picture, (height, width) in zip(padded, pictures, sizes, strict=True):
            place[:, :height, :width] = picture[:, :height, :width]
        return {"pixel_values": padded, "image_sizes": sizes}

    def _sizes(self, layout: Layout) -> Sequence[tuple[int, int]]:
        _, rows, columns = layout.grid
        return [(rows * self.settings.unit, columns * self.settings.unit)]

    def _canvases(self, rgb: Rgb, layout: Layout) -> Iterable[Rgb]:
        return [self.settings.resize(rgb, *size) for size in self._sizes(layout)]

    def _arrays(self, values: Sequence[Values], layout: Layout) -> Arrays:
        (picture,) = values
        return {"pixel_values": picture.squeeze(2), "image_sizes": np.array(self._sizes(layout), np.int64)}


def _fit(width: int, height: int, settings: PixtralSettings) -> tuple[int, int]:
    """Rows and columns of merged patches, in the processor's own floating point."""
    check_sides(width, height)
    ratio = max(height / settings.max_height, width / settings.max_width)
    tall, wide = (math.floor(side / ratio) if ratio > 1 else side for side in (height, width))
    if min(tall, wide) < 1:
        raise LayoutError(
            f"an image of {width}x{height} pixels would be resized to {wide}x{tall}", remedy="Crop or pad it"
        )
    return -(-tall // settings.unit), -(-wide // settings.unit)


def _settings(section: Section, joint: Section) -> PixtralSettings:
    default = PixtralSettings()
    max_height, max_width = _greatest(section, default)
    check_processor(section, PROCESSORS, switches={"do_resize": True, "do_pad": True, "do_center_crop": False})
    return PixtralSettings(
        patch_size=joint.whole("patch_size", default.patch_size),
        spatial_merge_size=joint.whole("spatial_merge_size", default.spatial_merge_size),
        max_height=max_height,
        max_width=max_width,
        **read_tones(section, default),
    )


def _greatest(section: Section, default: PixtralSettings) -> tuple[int, int]:
    """The greatest height and width, from `size`: by one number for both, or by each."""
    size = section.values.get("size")
    if not isinstance(size, dict) or "longest_edge" not in size:
        return section.pair("size", (default.max_height, default.max_width))
    if "height" in size or "width" in size:
        raise CheckpointError(
            f"{section.file}: size has both a longest_edge and a height or width", remedy="Correct the file"
        )
    longest = section.section("size").whole("longest_edge")
    return longest, longest


def _check_classes(checkpoint: Checkpoint) -> None:
    """LLaVA is a line of its own unless its tower is Pixtral's, and its processor too."""
    model_type = checkpoint.model_type
    tower = checkpoint.config.section("vision_config", {}).text(
        "model_type", "pixtral" if model_type == "mistral3" else ""
    )
    named = checkpoint.processor.text("processor_class", JOINT_PROCESSORS[model_type])
    processor = checkpoint.joint.text("processor_class", named)
    if (tower, processor) != ("pixtral", JOINT_PROCESSOR):
        raise CheckpointError(
            f"this {model_type} checkpoint has a vision tower of model type {tower[:64]!r} and a {processor[:64]!r}",
            remedy=f"filmroll covers those with a tower of type 'pixtral' and a {JOINT_PROCESSOR}",
        )


def _check_tower(settings: PixtralSettings, checkpoint: Checkpoint) -> None:
    """The tower cuts and merges as the processor counts."""
    config = checkpoint.config
    mistral3 = checkpoint.model_type == "mistral3"
    patch = 14 if mistral3 and not config.has("vision_config") else 16
    theirs = (
        config.section("vision_config", {}).whole("patch_size", patch),
        config.whole("spatial_merge_size", 2) if mistral3 else 1,
    )
    ours = (settings.patch_size, settings.spatial_merge_size)
    if theirs != ours:
        raise CheckpointError(
            f"{config.file} has patches of {theirs[0]} merged by {theirs[1]}, the processor has {ours[0]} by {ours[1]}",
            remedy="patch_size and spatial_merge_size stand in processor_config.json; fetch both files again",
        )


def _check_image_token(checkpoint: Checkpoint, image: int) -> None:
    config = checkpoint.config
    keys = [key for key in ("image_token_index", "image_token_id") if config.has(key)]
    named = {config.whole(key, least=0) for key in keys} or {IMAGE_TOKEN_IDS[checkpoint.model_type]}
    if named != {image}:
        raise CheckpointError(
            f"{config.file} has the image token {sorted(named)}, the tokenizer has {image}",
            remedy="The files are not of one checkpoint; fetch them again",
        )
