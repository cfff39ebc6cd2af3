"""What an image's header says, without decoding pixels.

The format is told from the content, never from a name. Sizes are held to the limits before the
rest of the file is looked at, and a truncated JPEG, PNG or WebP is found by its structure alone.
"""

from __future__ import annotations

from filmroll.errors import ImageFormatError
from filmroll.store.formats.base import Format, Header, Limits
from filmroll.store.formats.bmp import check_bmp
from filmroll.store.formats.gif import check_gif
from filmroll.store.formats.jpeg import SIGNATURE as JPEG_SIGNATURE
from filmroll.store.formats.jpeg import jpeg_header
from filmroll.store.formats.pillow import open_image
from filmroll.store.formats.png import SIGNATURE as PNG_SIGNATURE
from filmroll.store.formats.png import png_header
from filmroll.store.formats.tiff import check_tiff
from filmroll.store.formats.webp import is_webp, webp_header

__all__ = ["Format", "Header", "Limits", "read_header", "sniff"]

_SIGNATURES: tuple[tuple[bytes, Format], ...] = (
    (PNG_SIGNATURE, "PNG"),
    (JPEG_SIGNATURE, "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)

_WALKERS = {"PNG": png_header, "JPEG": jpeg_header, "WEBP": webp_header}


def sniff(data: bytes) -> Format:
    """The format that these bytes begin like."""
    if is_webp(data):
        return "WEBP"
    for signature, format_ in _SIGNATURES:
        if data.startswith(signature):
            return format_
    raise ImageFormatError(
        "this is no image that filmroll reads" if data else "the image is empty",
        remedy="JPEG, PNG, WebP, GIF, BMP and TIFF are read",
    )


def read_header(data: bytes, limits: Limits) -> Header:
    """What the header says; ImageLimitError beyond the limits, ImageFormatError if bytes are wrong or missing."""
    limits.check_bytes(len(data))
    format_ = sniff(data)
    walker = _WALKERS.get(format_)
    if walker is not None:
        return walker(data, limits)
    # Never canonical: Pillow's own header reading is enough where it costs little; the picture is re-encoded.
    if format_ == "TIFF":
        check_tiff(data, limits)
    elif format_ == "GIF":
        check_gif(data)
    else:
        check_bmp(data)
    width, height = open_image(data, format_).size
    limits.check_size(width, height)
    return Header(format_, width, height, plain=False)
