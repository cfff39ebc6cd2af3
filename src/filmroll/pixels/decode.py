"""Canonical bytes to pixels. H = height, W = width."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from filmroll.errors import ImageFormatError
from filmroll.pixels.decoders import decode_any, decode_jpeg, decode_png
from filmroll.pixels.patches import Rgb
from filmroll.pixels.scratch import Scratch, borrowed
from filmroll.store.formats.header import Limits, read_header

_FAST = {"JPEG": decode_jpeg, "PNG": decode_png}


def decode(data: bytes, *, max_pixels: int) -> Rgb:
    """The picture in canonical bytes, [H, W, 3] uint8, read-only; grey has three equal channels.

    The header is held to `max_pixels` before anything is decoded. Bytes that no store would have
    kept are an ImageFormatError: they would look different to another decoder.
    """
    return _decode(data, max_pixels, Scratch())


@contextmanager
def decoding(data: bytes, *, max_pixels: int) -> Iterator[Rgb]:
    """`decode` for a picture that nobody needs after the block: its memory is then used again."""
    with borrowed() as scratch:
        yield _decode(data, max_pixels, scratch)


def _decode(data: bytes, max_pixels: int, scratch: Scratch) -> Rgb:
    header = read_header(data, Limits(max_bytes=len(data), max_pixels=max_pixels))
    if not header.plain:
        raise _not_canonical()
    fast = _FAST.get(header.format)
    rgb = None if fast is None else fast(data, header, scratch)
    if rgb is None:
        rgb, mode = decode_any(data, header)
        if mode not in ("L", "RGB") or rgb.shape[:2] != (header.height, header.width):
            raise _not_canonical()
    if rgb.ndim == 2:
        rgb = rgb[:, :, np.newaxis]
    if rgb.shape[2] == 1:
        rgb = np.repeat(rgb, 3, axis=2)
    rgb.flags.writeable = False
    return rgb


def _not_canonical() -> ImageFormatError:
    return ImageFormatError("the image is not in canonical form", remedy="Put it into a store and read it from there")
