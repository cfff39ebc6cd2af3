"""Whatever was put in becomes canonical: bytes in which every decoder sees the same picture.

Plain RGB or grey JPEG, PNG and WebP keep their bytes exactly; everything else is decoded once and
written as PNG by the policy in picture.py. Canonical bytes stay as they are when put in again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from filmroll.store.formats.base import Header, Limits
from filmroll.store.formats.header import read_header
from filmroll.store.formats.pillow import image_errors, open_image
from filmroll.store.formats.png_pixels import png_pixels_end
from filmroll.store.ingest.http_sources import HttpSources
from filmroll.store.ingest.picture import encode_png, from_samples, orientation, samples, scale_key, upright_rgb
from filmroll.store.ingest.sources import Source, fetch
from filmroll.store.recent import Recent

__all__ = ["Canonical", "HttpSources", "Limits", "Source", "canonical"]


@dataclass(frozen=True, slots=True)
class Canonical:
    """An image as it is stored."""

    data: bytes
    sha256: str
    media_type: str
    width: int
    height: int


_proved: Recent[Header] = Recent(1 << 16)
"""Digests of plain files that this process has decoded: putting one again costs no decoding."""

_made: Recent[Canonical] = Recent(32 << 20, weigh=lambda image: len(image.data))
"""What was made of other files, by digest, and of pixels: the same frame again costs no encoding."""


def canonical(source: Source, limits: Limits | None = None, http: HttpSources | None = None) -> Canonical:
    """The image in canonical form; any fault of the source is an ImageError."""
    limits = limits or Limits()
    found = fetch(source, limits, http)
    if isinstance(found, bytes):
        return _from_bytes(found, limits)
    if isinstance(found, Image.Image):
        limits.check_size(*found.size)
        return _from_pixels(np.asarray(upright_rgb(found)), limits)
    return _from_pixels(samples(found, limits), limits)


def _from_bytes(data: bytes, limits: Limits) -> Canonical:
    digest = hashlib.sha256(data).hexdigest()
    known = _proved.get(digest)
    if known is not None:
        limits.check_size(known.width, known.height)
        return Canonical(data, digest, known.media_type, known.width, known.height)
    made = _made.get(digest)
    if made is not None:
        return _within(limits, made)
    header = read_header(data, limits)
    ends = header.format != "PNG" or png_pixels_end(data)
    # Plain files are decoded too, once: bytes that no reader can decode are refused here, where
    # the image was made, and not a training step later.
    image = open_image(data, header.format)
    with image_errors(f"the {header.format} file"):
        image.load()
    limits.check_size(*image.size)
    if header.plain and ends and _as_announced(image, header):
        _proved.add(digest, header)
        return Canonical(data, digest, header.media_type, header.width, header.height)
    scale_key(image, header)
    return _encoded(digest, upright_rgb(image), limits)


def _as_announced(image: Image.Image, header: Header) -> bool:
    """Whether the decoder, too, finds nothing but one upright opaque picture of that size."""
    return (
        image.size == (header.width, header.height)
        and image.mode in ("L", "RGB")
        and not image.has_transparency_data
        and getattr(image, "n_frames", 1) == 1
        and orientation(image) == 1
    )


def _from_pixels(pixels: npt.NDArray[np.uint8], limits: Limits) -> Canonical:
    # The shape in clear: no file's digest is such a key.
    key = f"{pixels.shape} {hashlib.sha256(pixels.data).hexdigest()}"
    made = _made.get(key)
    return _encoded(key, from_samples(pixels), limits) if made is None else _within(limits, made)


def _encoded(key: str, picture: Image.Image, limits: Limits) -> Canonical:
    data = encode_png(picture)
    image = Canonical(data, hashlib.sha256(data).hexdigest(), "image/png", *picture.size)
    _proved.add(image.sha256, Header("PNG", *picture.size, plain=True))
    _made.add(key, image)
    return _within(limits, image)


def _within(limits: Limits, image: Canonical) -> Canonical:
    limits.check_size(image.width, image.height)
    limits.check_bytes(len(image.data))
    return image
