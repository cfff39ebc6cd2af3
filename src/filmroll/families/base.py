"""What a family of models is: how it sees, in numbers and functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from ml_dtypes import bfloat16
from PIL import Image

from filmroll.errors import ImageFormatError, LayoutError
from filmroll.families.checkpoint import Checkpoint
from filmroll.image import ImageRef
from filmroll.pixels.late import normalize
from filmroll.pixels.patches import Cut, Table, Values, cut, cut_shape
from filmroll.store.ingest.picture import upright_rgb
from filmroll.wire.descriptor import ImageDescriptor

Rgb = npt.NDArray[np.uint8]
"""A decoded picture, [height, width, 3]."""

Arrays = dict[str, npt.NDArray[Any]]
"""Model inputs under the names that the family's own image processor gives them."""

Dtype = Literal["float32", "bfloat16", "uint8"]
"""What values come in; uint8 are levels that a reader normalizes late, on its device."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What one image becomes: its patch grid [time, height, width], the length of its placeholder, and
    how many of those tokens take a feature.
    """

    grid: tuple[int, int, int]
    tokens: int
    features: int
    payload: dict[str, list[list[int]]]


@dataclass(frozen=True, slots=True)
class Placeholders:
    """The tokens that stand for images, from the checkpoint's own config.json."""

    image: int
    """Takes a feature of an image."""
    unsampled: tuple[int, ...]
    """Vision tokens that a policy must never sample: features would no longer match tokens."""
    texts: tuple[str, ...]
    """How those tokens are spelled; a message may not contain them."""
    logical: int | None = None
    """What the chat template writes once for an image, where that is another token."""

    @property
    def pad(self) -> int:
        """The one token that stands for an image in logical tokens."""
        return self.image if self.logical is None else self.logical


@dataclass(frozen=True, slots=True)
class ForwardPolicy:
    """How the model's forward is called with tokens and pictures, and what it allows.

    A transformers model asks its own `get_image_features` for what its vision tower makes of pictures. So
    one way of feeding serves every family: which module the tower is, what projects its features, and which
    deeper layers take some too, is the model's own business.
    """

    marks: str | None = None
    """The name of the array that is 1 at image placeholders and 0 elsewhere, where the forward takes one."""
    grid: str | None = None
    """The array with one row an image that the forward wants for each place an image is used, and by which the
    model counts positions on several axes, if it does.
    """
    unused: tuple[str, ...] = ()
    """Arrays of the image processor that the forward does not take, or makes itself."""
    packs: bool = False
    """Whether samples in one row stay apart where positions begin anew; else the trainer gives each its own row."""
    shares: bool = True
    """Whether places may share the features that the vision tower makes of their picture.

    Else each brings a picture of its own: the same result, and as many passes of the tower as there are places.
    """
    caps: bool = False
    """Whether the forward caps its logits by the configuration's `final_logit_softcapping`, where there is one."""

    def taken(self, arrays: Arrays) -> Arrays:
        """Those of a picture's arrays that the forward takes."""
        return {name: array for name, array in arrays.items() if name not in self.unused}


class Family(ABC):
    """One line of models, as configured by one checkpoint.

    `fingerprint` names the numbers that layouts depend on, `recipe` everything that pixels depend
    on: two processes whose recipes agree build the same tensors from the same bytes.
    """

    name: str
    model_types: ClassVar[tuple[str, ...]]
    """The `model_type`s of config.json that the family covers."""
    vllm_modality: ClassVar[str | None] = None
    """What vLLM calls pictures of this family, where that is not `image`."""
    vllm_names: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """What vLLM's model calls arrays of the family, where it has other names for them."""
    fingerprint: str
    first_fingerprint: str | None = None
    """What the oldest references of other systems have in its place; None where they know no such family."""
    recipe: str
    renderer: str | None
    """The name of the `renderers` text renderer for this checkpoint, None where there is none."""
    placeholders: Placeholders
    forward: ForwardPolicy
    cut: Cut
    table: npt.NDArray[np.float32]
    """[3, 256]: what each level of each channel becomes."""

    def __init__(self, table: npt.NDArray[np.float32]) -> None:
        self.table = table
        self._tables: dict[Dtype, Table | None] = {
            "float32": table,
            "bfloat16": table.astype(bfloat16),
            "uint8": None,
        }

    @classmethod
    @abstractmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """The family as this checkpoint's files configure it; CheckpointError where they do not fit."""

    @abstractmethod
    def layout(self, width: int, height: int) -> Layout:
        """What an image of this size becomes; LayoutError where the processor refuses it too."""

    def pixels(self, images: Sequence[Rgb | Image.Image], dtype: Dtype = "float32") -> Arrays:
        """The processor's own arrays for these pictures, in order; none for no pictures.

        A picture is a uint8 array [height, width, 3], or a PIL image, which is read as the store reads
        it. In uint8 the values are levels that have yet to be normalized, without temporal copies.
        """
        parts = [self._developed(_rgb(image, index), dtype) for index, image in enumerate(images)]
        return self.join(parts) if parts else {}

    def join(self, parts: Sequence[Arrays]) -> Arrays:
        """The arrays of several pictures as one call of the processor gives them."""
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def normalized(self, levels: Arrays, dtype: Dtype = "float32") -> Arrays:
        """One picture's arrays as `pixels` gives them in `dtype`, from those that it gives in uint8.

        A picture at a time, before `join`: what a processor pads, it pads after normalizing.
        """
        table = self._tables[dtype]
        if table is None:
            return levels
        return {
            name: normalize(array, table, self.cut) if array.dtype == np.uint8 else array
            for name, array in levels.items()
        }

    def outline(self, layout: Layout) -> Arrays:
        """What `pixels` gives in uint8 for a picture of this layout, all levels 0.

        So names, types and shapes are those of every such picture, and whatever is no levels is the very same.
        """
        how = replace(self.cut, temporal=1)
        blank = np.zeros((), np.uint8)
        return self._arrays([np.broadcast_to(blank, cut_shape(*size, how)) for size in self._sizes(layout)], layout)

    def _developed(self, rgb: Rgb, dtype: Dtype) -> Arrays:
        height, width, _ = rgb.shape
        layout = self.layout(width, height)
        how, table = self.cut, self._tables[dtype]
        if dtype == "uint8":
            how = replace(how, temporal=1)
        return self._arrays([cut(canvas, table, how) for canvas in self._canvases(rgb, layout)], layout)

    @abstractmethod
    def _sizes(self, layout: Layout) -> Sequence[tuple[int, int]]:
        """Height and width of each canvas."""

    @abstractmethod
    def _canvases(self, rgb: Rgb, layout: Layout) -> Iterable[Rgb]:
        """The pictures that are cut, of these sizes: resized, cropped and padded, still in levels."""

    @abstractmethod
    def _arrays(self, values: Sequence[Values], layout: Layout) -> Arrays:
        """What was cut from the canvases, under the names and in the shapes of the processor."""

    def expansion(self, image: ImageDescriptor) -> npt.NDArray[np.int32]:
        """The `image.tokens` tokens that an image's one pad becomes.

        What the descriptor claims may be wrong: nothing larger than `image.tokens` is built.
        """
        return np.full(image.tokens, self.placeholders.image, np.int32)

    def prompt_text(self, text: str) -> str:
        """A chat's text, its images one pad each, with what the model's processor writes around them.

        It is text and not a placeholder where a tokenizer may merge it with what stands beside it.
        """
        return text

    @abstractmethod
    def cost(self, layout: Layout) -> int:
        """How many vision patches the image costs in the vision tower."""

    @abstractmethod
    def pixel_bytes(self, image: ImageRef) -> int:
        """How many bytes the image's float32 arrays take: what travels where references do not."""

    def level_bytes(self, image: ImageRef) -> int:
        """How many bytes its levels take: what readers keep."""
        return self.pixel_bytes(image) // (4 * self.cut.temporal)

    def describe(self, image: ImageRef) -> ImageDescriptor:
        """The descriptor of a stored image for this family, from its header alone."""
        layout = self.layout(image.width, image.height)
        return ImageDescriptor(
            image=image,
            family=self.name,
            layout_fingerprint=self.fingerprint,
            recipe=self.recipe,
            payload=layout.payload,
            tokens=layout.tokens,
            vllm_modality=self.vllm_modality,
        )


def check_sides(width: int, height: int) -> None:
    """What every layout asks of a picture's size before it divides by it."""
    if min(width, height) < 1:
        raise LayoutError(f"an image of {width}x{height} pixels has no layout", remedy="Both sides must be at least 1")


def _rgb(image: object, index: int) -> Rgb:
    if isinstance(image, Image.Image):
        return np.asarray(upright_rgb(image).convert("RGB"))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return image
    what = f"{image.dtype} array {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise ImageFormatError(
        f"a picture is a uint8 array [height, width, 3] or a PIL image, this is a {what}",
        remedy="store.put() takes other kinds of images and makes them so",
        index=index,
    )
