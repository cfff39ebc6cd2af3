"""Whatever was put in becomes canonical: bytes in which every decoder sees the same picture.

Plain RGB or grey JPEG, PNG and WebP keep their bytes exactly; everything else is decoded once and
written as PNG by the policy in picture.py. Canonical bytes stay as they are when put in again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from PIL import Image

from filmroll.store.formats.base import Header, Limits
from filmroll.store.formats.pillow import image_errors, open_image
from filmroll.store.header import read_header
from filmroll.store.picture import encode_png, from_array, orientation, scale_key, upright_rgb
from filmroll.store.recent import Recent
from filmroll.store.sources import HttpSources, Source, fetch

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


def canonical(source: Source, limits: Limits | None = None, http: HttpSources | None = None) -> Canonical:
    """The image in canonical form; any fault of the source is an ImageError."""
    limits = limits or Limits()
    found = fetch(source, limits, http)
    if isinstance(found, bytes):
        return _from_bytes(found, limits)
    if isinstance(found, Image.Image):
        limits.check_size(*found.size)
        return _encoded(upright_rgb(found), limits)
    return _encoded(from_array(found, limits), limits)


def _from_bytes(data: bytes, limits: Limits) -> Canonical:
    digest = hashlib.sha256(data).hexdigest()
    known = _proved.get(digest)
    if known is not None:
        limits.check_size(known.width, known.height)
        return Canonical(data, digest, known.media_type, known.width, known.height)
    header = read_header(data, limits)
    # Plain files are decoded too, once: bytes that no reader can decode are refused here, where
    # the image was made, and not a training step later.
    image = open_image(data, header.format)
    with image_errors(f"the {header.format} file"):
        image.load()
    limits.check_size(*image.size)
    if header.plain and _as_announced(image, header):
        _proved.add(digest, header)
        return Canonical(data, digest, header.media_type, header.width, header.height)
    scale_key(image, header)
    return _encoded(upright_rgb(image), limits)


def _as_announced(image: Image.Image, header: Header) -> bool:
    """Whether the decoder, too, finds nothing but one upright opaque picture of that size."""
    return (
        image.size == (header.width, header.height)
        and image.mode in ("L", "RGB")
        and not image.has_transparency_data
        and getattr(image, "n_frames", 1) == 1
        and orientation(image) == 1
    )


def _encoded(picture: Image.Image, limits: Limits) -> Canonical:
    data = encode_png(picture)
    limits.check_bytes(len(data))
    digest = hashlib.sha256(data).hexdigest()
    _proved.add(digest, Header("PNG", *picture.size, plain=True))
    return Canonical(data, digest, "image/png", *picture.size)
