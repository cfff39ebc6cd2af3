"""Logical tokens (one pad per image) to expanded tokens (those that the model consumes)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from filmroll.errors import RenderError
from filmroll.families.base import Family
from filmroll.wire.descriptor import ImageDescriptor


@dataclass(frozen=True, slots=True)
class Expanded:
    """Tokens as a model consumes them, and where each image's placeholders begin among them."""

    token_ids: npt.NDArray[np.int32]
    offsets: tuple[int, ...]


def repeats(logical: npt.NDArray[np.int32], images: Sequence[ImageDescriptor], pad: int) -> npt.NDArray[np.int64]:
    """How often each logical token is repeated: 1, or an image's token count at its pad.

    `np.repeat(values, repeats(...))` stretches any array that runs along the logical tokens.
    """
    counts = np.ones(len(logical), np.int64)
    pads = np.flatnonzero(logical == pad)
    if len(pads) != len(images):
        raise RenderError(
            f"the tokens hold {len(pads)} image pads for {len(images)} images",
            remedy="Each image has exactly one pad; a placeholder token was typed or sampled, or an image was dropped",
        )
    counts[pads] = [image.tokens for image in images]
    return counts


def expand(logical: Sequence[int] | npt.NDArray[Any], images: Sequence[ImageDescriptor], family: Family) -> Expanded:
    """Every pad replaced by the tokens of its image, in order."""
    tokens = np.asarray(logical, np.int32)
    pad = family.placeholders.pad
    counts = repeats(tokens, images, pad)
    starts = np.cumsum(counts) - counts
    offsets = starts[tokens == pad].tolist()
    expanded = np.repeat(tokens, counts)
    for image, offset in zip(images, offsets, strict=True):
        expanded[offset : offset + image.tokens] = family.expansion(image)
    return Expanded(expanded, tuple(offsets))
