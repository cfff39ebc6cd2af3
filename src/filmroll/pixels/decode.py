"""Canonical bytes to pixels. H = height, W = width."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from filmroll.errors import ImageFormatError
from filmroll.store.formats.pillow import image_errors, open_image
from filmroll.store.header import Limits, read_header

Rgb = npt.NDArray[np.uint8]
"""A decoded picture, [H, W, 3]."""


def decode(data: bytes, *, max_pixels: int) -> Rgb:
    """The picture in canonical bytes, [H, W, 3] uint8, read-only; grey has three equal channels.

    The header is held to `max_pixels` before anything is decoded. Bytes that no store would have
    kept are an ImageFormatError: they would look different to another decoder.
    """
    header = read_header(data, Limits(max_bytes=len(data), max_pixels=max_pixels))
    if not header.plain:
        raise _not_canonical()
    image = open_image(data, header.format)
    with image_errors(f"the {header.format} file"):
        image.load()
        pixels = np.asarray(image)
    if image.mode not in ("L", "RGB") or image.size != (header.width, header.height):
        raise _not_canonical()
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, np.newaxis], 3, axis=2)


def _not_canonical() -> ImageFormatError:
    return ImageFormatError("the image is not in canonical form", remedy="Put it into a store and read it from there")
