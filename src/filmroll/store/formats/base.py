"""What a walker finds, and the limits that it holds every picture to as soon as its size is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from filmroll.errors import ImageFormatError, ImageLimitError

Format = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]

MAX_PARTS = 3072
BYTES_PER_PART = 8192
"""Chunks or segments that a file may have, and one more for each so many bytes: files of empty ones cost no seconds."""

MAX_METADATA = 2 << 20
"""Bytes of text, profiles and EXIF in a file, unpacked: readers keep them, and a kilobyte can unpack to a megabyte."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How large an image may be, checked on its bytes and its header before anything is decoded.

    `max_pixels` has room for a 61-megapixel camera and stays below the 89 million from which Pillow
    warns: whatever is stored, every reader that uses Pillow opens it in silence. `max_side` is the
    longest that a JPEG can have. Frames have no limit: of an animation only the first is decoded.
    """

    max_bytes: int = 64 << 20
    max_pixels: int = 1 << 26
    max_side: int = 65_535

    def check_bytes(self, nbytes: int) -> None:
        if nbytes > self.max_bytes:
            raise ImageLimitError(
                f"the image has {nbytes} bytes, the limit is {self.max_bytes}",
                remedy="Make it smaller, or raise max_bytes",
            )

    def check_size(self, width: int, height: int) -> None:
        if width < 1 or height < 1:
            raise ImageFormatError(f"the image is {width} x {height} pixels")
        if max(width, height) > self.max_side:
            raise ImageLimitError(
                f"the image is {width} x {height} pixels, the limit for a side is {self.max_side}",
                remedy="Make it smaller, or raise max_side",
            )
        if width * height > self.max_pixels:
            raise ImageLimitError(
                f"the image is {width} x {height} pixels, the limit is {self.max_pixels} in all",
                remedy="Make it smaller, or raise max_pixels",
            )


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says before its pixels are decoded.

    `plain` means that every decoder sees the same picture in these bytes: 8 bits, RGB or grey, one
    frame, upright, opaque, nothing unusual. `depth` is the bits of one sample, of PNG files only.
    """

    format: Format
    width: int
    height: int
    plain: bool
    depth: int = 8

    @property
    def media_type(self) -> str:
        return f"image/{self.format.lower()}"


def most_parts(data: bytes) -> int:
    return MAX_PARTS + len(data) // BYTES_PER_PART


def too_many_parts(format_: Format, what: str, most: int) -> ImageLimitError:
    return ImageLimitError(
        f"the {format_} file has more than {most} {what}", remedy="Write it again from its source, in larger ones"
    )


def broken(format_: Format, how: str) -> ImageFormatError:
    return ImageFormatError(f"the {format_} file is broken: {how}", remedy="Write it again from its source")
