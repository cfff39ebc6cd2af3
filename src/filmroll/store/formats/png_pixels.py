"""The compressed pixels of a PNG file: as many as its header announces, no fewer, and then an end.

Decoders differ here. Pillow leaves rows that are missing black and says nothing, and does not look at what follows
the last row; libpng refuses both.
"""

from __future__ import annotations

import struct
import zlib

from filmroll.store.formats.base import broken
from filmroll.store.formats.png import chunks

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of an interlaced file: first column, first row, and the steps to the next ones, of each pass."""

_PIECE = 1 << 18


def png_pixels_end(data: bytes) -> bool:
    """Whether exactly the announced pixels are there; ImageFormatError if there are fewer.

    Nothing is kept of them, so that neither a file that announces too much nor one that holds too much costs memory.
    """
    missing = _announced(data)
    unpack = zlib.decompressobj()
    bodies: list[bytes | memoryview] = [body for name, body in chunks(data) if name == b"IDAT"]
    for rest in (*bodies, b""):
        while True:
            try:
                piece = unpack.decompress(rest, min(missing, _PIECE) or 1)
            except zlib.error:
                raise broken("PNG", "its pixels are not compressed as they must be") from None
            if len(piece) > missing:
                return False
            missing -= len(piece)
            rest = unpack.unconsumed_tail
            if not rest and not piece:
                break
    if missing:
        raise broken("PNG", "its pixels end before the last row")
    return unpack.eof and not unpack.unused_data


def _announced(data: bytes) -> int:
    """How many bytes the rows of all passes have, each with the byte that names its filter."""
    width: int
    height: int
    width, height, depth, colour, _, _, interlace = struct.unpack_from(">LLBBBBB", data, 16)
    bits = depth * _CHANNELS[colour]
    if not interlace:
        return _rows(width, height, bits)
    return sum(
        _rows(-(-(width - left) // across), -(-(height - top) // down), bits) for left, top, across, down in _PASSES
    )


def _rows(width: int, height: int, bits: int) -> int:
    return height * (1 + (width * bits + 7) // 8) if width > 0 and height > 0 else 0
