"""Whole files to pictures, [H, W, C] uint8, by the fastest decoder that gives Pillow's pixels.

Pillow decodes everything. JPEG and PNG go faster through libraries of their own where those are
installed (`filmroll[fast]`); whatever they hesitate at is left to Pillow.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from filmroll.pixels.kernels import compiled
from filmroll.pixels.patches import Rgb
from filmroll.pixels.scratch import Scratch
from filmroll.store.formats.header import Header
from filmroll.store.formats.pillow import image_errors, open_image
from filmroll.store.formats.png import INTERLACED, RGB, png_pixels


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


simplejpeg = _library("simplejpeg")
isal_zlib = _library("isal.isal_zlib")


def decode_jpeg(data: bytes, header: Header, scratch: Scratch) -> Rgb | None:
    """The picture as libjpeg-turbo gives it with Pillow's own settings; None where Pillow should look at it."""
    if simplejpeg is None:
        return None
    out = scratch.picture(header.height, header.width, 3)
    try:
        rgb: Rgb = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, buffer=out)
    except ValueError:
        return None
    return rgb if rgb.shape == (header.height, header.width, 3) else None


def decode_png(data: bytes, header: Header, scratch: Scratch) -> Rgb | None:
    """The picture of a plain PNG that is not interlaced; None where Pillow should look at it."""
    kind, interlaced, stream = png_pixels(data)
    if compiled is None or isal_zlib is None or interlaced == INTERLACED:
        return None
    channels = 3 if kind == RGB else 1
    nbytes = header.height * (header.width * channels + 1)
    out = scratch.picture(header.height, header.width, channels)
    try:
        # No more than the header promises, however much the stream would give.
        rows = isal_zlib.decompressobj().decompress(stream, nbytes)
        compiled.unfilter(rows, out, header.height, header.width, channels)
    except (isal_zlib.error, ValueError):
        return None
    return out


def decode_any(data: bytes, header: Header) -> tuple[npt.NDArray[Any], str]:
    """Pillow's pixels and the mode that they are in."""
    image = open_image(data, header.format)
    with image_errors(f"the {header.format} file"):
        image.load()
        return np.asarray(image), image.mode
