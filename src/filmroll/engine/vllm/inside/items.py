"""One image as vLLM's model takes it: made here, and made by vLLM itself, to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

    from filmroll.families.base import Arrays

PIXELS = "pixel_values"
TILED = frozenset({"num_patches", "image_num_patches"})
"""What some of vLLM's processors add to the image processor's arrays: into how many tiles an image is cut."""

TOLERANCE = 1e-2
"""Between values of a picture of one colour, in numbers that may have 8 bits."""

Item = Any
"""A `MultiModalKwargsItem`: one image as vLLM's model takes it."""


@dataclass(frozen=True, slots=True)
class Example:
    """What vLLM makes of a picture: the model's arguments, and how many tokens take a feature."""

    picture: Any
    item: Item
    features: int

    def differences(self, item: Item, features: int) -> list[str]:
        """How another making of it differs, in words; empty if vLLM's model would notice nothing."""
        import torch

        ours, theirs = item.get_data(), self.item.get_data()
        found = [f"{name} is made by {'filmroll' if name in ours else 'vLLM'} alone" for name in ours.keys() ^ theirs]
        for name in sorted(ours.keys() & theirs):
            one, other = (torch.as_tensor(value) for value in (ours[name], theirs[name]))
            if (one.dtype, one.shape) != (other.dtype, other.shape):
                found.append(f"{name} is {one.dtype} {list(one.shape)}, vLLM's {other.dtype} {list(other.shape)}")
            elif not torch.allclose(one.double(), other.double(), atol=TOLERANCE):
                found.append(f"{name} has other values than vLLM's")
        if features != self.features:
            found.append(f"it takes {features} features, vLLM's {self.features}")
        return found


class Items:
    """What makes items in one API server."""

    def __init__(self, renderer: Any, config: Any) -> None:
        self._renderer = renderer
        self._config = config
        """The model's."""
        self._shared: dict[str, Any] = {}
        self._types: dict[str, torch.dtype] = {}
        """Of the model's arguments, as vLLM's own processor makes them."""

    def make(self, arrays: Arrays, modality: str) -> Item:
        """One image's arrays, under the names of its own image processor, as the model takes them."""
        from transformers import BatchFeature
        from vllm.multimodal.inputs import MultiModalKwargsItems

        processor = self._renderer.get_mm_processor()
        tensors = {name: self._tensor(name, array) for name, array in arrays.items()}
        batch = BatchFeature(tensors | _tiles(tensors) | self._shared)
        fields = processor._get_mm_fields_config(batch, {})
        if TILED & fields.keys():
            # There, an image's tiles stand in no row of their own.
            batch.update({name: one.flatten(0, 1) for name, one in tensors.items() if _in_rows(one, tensors)})
        (item,) = MultiModalKwargsItems.from_hf_inputs(batch, fields)[modality]
        return item

    def example(self, modality: str, width: int, height: int) -> Example:
        """A picture of one colour, and what vLLM itself makes of it; items that are made later follow it."""
        # Where vLLM makes them, too: not everything in there may run twice at once.
        thread = self._renderer._mm_executor
        example: Example = thread.submit(self._make_example, modality, width, height).result()
        return example

    def _make_example(self, modality: str, width: int, height: int) -> Example:
        import torch
        from PIL import Image
        from vllm.config.multimodal import ImageDummyOptions
        from vllm.multimodal.inputs import MultiModalSharedField
        from vllm.multimodal.processing import TimingContext

        processor = self._renderer.get_mm_processor()
        inputs = processor.get_dummy_inputs(
            seq_len=self._config.max_model_len,
            mm_counts={modality: 1},
            mm_options={modality: ImageDummyOptions(count=1, width=width, height=height)},
        )
        shown = inputs.mm_data_items[modality].get(0)
        if isinstance(shown, Mapping) and "image" not in shown:
            # A video, whatever was asked for: there, both are of one modality.
            shown = {"type": "image", "image": Image.new("RGB", (width, height), "white"), "uuid": None}
            inputs.mm_data_items = processor.info.parse_mm_data({modality: [shown]})
        made = processor.apply(inputs, TimingContext(enabled=False))
        (item,), (place,) = made["mm_kwargs"][modality], made["mm_placeholders"][modality]
        picture = shown["image"] if isinstance(shown, Mapping) else shown
        self._shared = {name: part.data for name, part in item.items() if isinstance(part.field, MultiModalSharedField)}
        self._types = {name: torch.as_tensor(value).dtype for name, value in item.get_data().items()}
        return Example(picture, item, place.get_num_embeds())

    def _tensor(self, name: str, array: np.ndarray[Any, Any]) -> torch.Tensor:
        import torch

        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        if tensor.is_floating_point():
            return tensor.to(self._config.dtype)
        # Levels stay what they are; a mask or a count is of whichever type this transformers makes it of.
        return tensor if tensor.dtype == torch.uint8 else tensor.to(self._types.get(name, tensor.dtype))


def _tiles(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """How many tiles one image has, where it may have several, under both names that vLLM's processors give that."""
    import torch

    pixels = tensors.get(PIXELS)
    return {} if pixels is None or pixels.ndim < 4 else dict.fromkeys(TILED, torch.tensor([pixels.shape[-4]]))


def _in_rows(tensor: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether a tensor has a row for the image, and in it one for each tile."""
    pixels = tensors[PIXELS]
    return pixels.ndim == 5 and tensor.shape[:2] == pixels.shape[:2]
