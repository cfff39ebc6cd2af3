"""TIFF: the first directory, before Pillow makes lists of what it announces."""

from __future__ import annotations

import struct

from filmroll.errors import ImageFormatError, ImageLimitError
from filmroll.store.formats.base import Limits, broken

MAX_ENTRIES = 1024
MAX_NUMBERS = 1 << 16
"""In all lists of the directory, such as the places and lengths of strips: 32,000 rows that are a strip each fit in."""

_COMPRESSION, _TILE_WIDTH, _TILE_HEIGHT = 259, 322, 323
_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946}
"""None, the three of fax machines, LZW, JPEG, deflate twice, PackBits: what cameras, scanners and libraries write."""

_TEXTS = (1, 2, 6, 7)
"""Types whose values stay bytes: bytes, text, signed bytes, undefined."""


def check_tiff(data: bytes, limits: Limits) -> None:
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    entry = f"{order}HHQ8s" if big else f"{order}HHL4s"
    numbers, tile = 0, {_TILE_WIDTH: 1, _TILE_HEIGHT: 1}
    for tag, kind, count, value in _directory(data, order, entry, big=big):
        numbers += 0 if kind in _TEXTS else count
        if numbers > MAX_NUMBERS:
            raise ImageLimitError(
                f"the TIFF file's directory holds more than {MAX_NUMBERS} numbers", remedy="Write it in larger strips"
            )
        if tag == _COMPRESSION and _number(value, kind, order) not in _COMPRESSIONS:
            raise ImageFormatError(
                "the TIFF file is compressed in a way that is not read", remedy="LZW, deflate, PackBits and JPEG are"
            )
        if tag in tile:
            tile[tag] = max(1, _number(value, kind, order))
    limits.check_size(tile[_TILE_WIDTH], tile[_TILE_HEIGHT])


def _directory(data: bytes, order: str, entry: str, *, big: bool) -> list[tuple[int, int, int, bytes]]:
    try:
        (start,) = struct.unpack_from(f"{order}Q", data, 8) if big else struct.unpack_from(f"{order}L", data, 4)
        (count,) = struct.unpack_from(f"{order}Q" if big else f"{order}H", data, start)
        if count > MAX_ENTRIES:
            raise ImageLimitError(f"the TIFF file's directory has more than {MAX_ENTRIES} entries")
        start, size = start + (8 if big else 2), struct.calcsize(entry)
        return [struct.unpack_from(entry, data, start + size * at) for at in range(count)]
    except (struct.error, OverflowError):
        raise broken("TIFF", "its directory is not in the file") from None


def _number(value: bytes, kind: int, order: str) -> int:
    """A single value of the types that numbers of pixels have."""
    code = {1: "B", 3: "H", 4: "L"}.get(kind, "L")
    return int(struct.unpack_from(order + code, value)[0])
