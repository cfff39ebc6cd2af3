"""What files say beside pixels: whether EXIF and XMP leave no doubt that the picture is upright, and how much it is."""

from __future__ import annotations

import re
import struct
import zlib

from filmroll.errors import ImageLimitError
from filmroll.store.formats.base import MAX_METADATA, Format

_ORIENTATION = 0x0112
_SHORT = 3
_UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""Bytes of one value, by EXIF type."""

_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9]+)')


class Budget:
    """Counts a file's metadata; ImageLimitError as soon as it is too much."""

    def __init__(self, format_: Format) -> None:
        self._format = format_
        self._left = MAX_METADATA

    def take(self, nbytes: int) -> None:
        self._left -= nbytes
        if self._left < 0:
            raise ImageLimitError(
                f"the {self._format} file holds more than {MAX_METADATA} bytes of text, profiles and EXIF",
                remedy="Write it without",
            )

    def unpack(self, packed: bytes) -> None:
        """Take what this unpacks to; nothing of it is kept, and not much more of it unpacked than is left."""
        try:
            self.take(len(zlib.decompressobj().decompress(packed, self._left + 1)))
        except zlib.error:
            return  # Readers, too, pass over what they cannot unpack.


def upright_exif(data: bytes) -> bool:
    """Whether this is a well-formed EXIF block without an orientation other than 1.

    Readers disagree about blocks that are not well-formed, and some print warnings: those are no.
    """
    data = data.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None or len(data) < 8:
        return False
    (start,) = struct.unpack_from(f"{order}L", data, 4)
    if start + 2 > len(data):
        return False
    (count,) = struct.unpack_from(f"{order}H", data, start)
    if start + 2 + 12 * count + 4 > len(data):
        return False
    entries = [struct.unpack_from(f"{order}HHL", data, start + 2 + 12 * index) for index in range(count)]
    return all(_upright_entry(data, order, start + 2 + 12 * index, *entry) for index, entry in enumerate(entries)) and (
        sum(_UNITS[kind] * values for _, kind, values in entries) <= len(data)
    )


def _upright_entry(data: bytes, order: str, place: int, tag: int, kind: int, count: int) -> bool:
    if kind not in _UNITS:
        return False
    size = _UNITS[kind] * count
    (offset,) = struct.unpack_from(f"{order}L", data, place + 8)
    if size > 4 and offset + size > len(data):
        return False
    if tag != _ORIENTATION:
        return True
    (value,) = struct.unpack_from(f"{order}H", data, place + 8)
    return (kind, count, value) == (_SHORT, 1, 1)


def upright_xmp(data: bytes) -> bool:
    """Whether no orientation other than 1 is spelled in this XMP packet."""
    found = _XMP.findall(data)
    return len(found) == data.count(b"tiff:Orientation") and all(value == b"1" for value in found)
