"""BMP: the one way of writing it that costs its readers time."""

from __future__ import annotations

import struct

from filmroll.errors import ImageLimitError

_RUNS = (1, 2)
_MAX_BYTES = 1 << 20


def check_bmp(data: bytes) -> None:
    """ImageLimitError for a long run-length encoded file: Pillow reads those two bytes at a time, in Python."""
    (compression,) = struct.unpack_from("<L", data, 30) if len(data) >= 34 else (0,)
    if compression in _RUNS and len(data) > _MAX_BYTES:
        raise ImageLimitError(
            f"the BMP file is run-length encoded and has {len(data)} bytes, the limit for such files is {_MAX_BYTES}",
            remedy="Write it without compression, or as PNG",
        )
