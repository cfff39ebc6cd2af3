"""PNG: every chunk with its checksum, from the signature through IEND."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from filmroll.store.formats.base import Header, Limits, broken, most_parts, too_many_parts
from filmroll.store.formats.metadata import Budget, upright_exif, upright_xmp

try:  # A tenth of zlib's time, which is one in twenty of a whole decode.
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bits of a sample that each colour type may have."""

GREY, RGB = 0, 2
INTERLACED = 1
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_UNPLAIN = (b"tRNS", b"acTL", b"fcTL", b"fdAT")
_ACTING_KEYS = (b"exif", b"xmp", b"transparency", b"default_image", b"interlace")
"""Text under these keywords acts on the picture in readers that keep text and settings in one place."""


def png_header(data: bytes, limits: Limits) -> Header:
    if data[8:16] != b"\0\0\0\rIHDR" or len(data) < 33:
        raise broken("PNG", "it does not begin with a whole IHDR chunk")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack_from(">LLBBBBB", data, 16)
    limits.check_size(width, height)
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise broken("PNG", "its IHDR chunk holds numbers that mean nothing")
    plain = depth == 8 and colour in (GREY, RGB)
    names: list[bytes] = []
    budget = Budget("PNG")
    for name, body in chunks(data):
        names.append(name)
        _weigh(name, body, budget)
        plain = plain and _harmless(name, body)
    _check_order(names)
    return Header("PNG", width, height, plain, depth)


def png_pixels(data: bytes) -> tuple[int, int, bytes]:
    """Colour type, interlacing, and the compressed rows of a file that `png_header` has found whole."""
    parts, place = [], len(SIGNATURE)
    while (name := data[place + 4 : place + 8]) != b"IEND":
        (length,) = struct.unpack_from(">L", data, place)
        if name == b"IDAT":
            parts.append(memoryview(data)[place + 8 : place + 8 + length])
        place += 12 + length
    return data[25], data[28], b"".join(parts)


def chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Name and body of every chunk through IEND, checksums verified."""
    view = memoryview(data)
    place = len(SIGNATURE)
    most = most_parts(data)
    for _ in range(most):
        if place + 12 > len(data):
            raise broken("PNG", "it ends before its IEND chunk")
        (length,) = struct.unpack_from(">L", data, place)
        name = data[place + 4 : place + 8]
        end = place + 8 + length
        if end + 4 > len(data):
            raise broken("PNG", "it ends within a chunk")
        if not (name.isalpha() and name.isascii()):
            raise broken("PNG", "a chunk has no name")
        (checksum,) = struct.unpack_from(">L", data, end)
        if crc32(view[place + 4 : end]) != checksum:
            raise broken("PNG", f"the checksum of its {name.decode()} chunk is wrong")
        yield name, view[place + 8 : end]
        if name == b"IEND":
            return
        place = end + 4
    raise too_many_parts("PNG", "chunks", most)


def _check_order(names: list[bytes]) -> None:
    if b"IDAT" not in names:
        raise broken("PNG", "it holds no pixels")
    if names.count(b"IHDR") > 1:
        raise broken("PNG", "it has two IHDR chunks")
    first = names.index(b"IDAT")
    if any(name != b"IDAT" for name in names[first : first + names.count(b"IDAT")]):
        raise broken("PNG", "its pixels are interrupted by another chunk")


def _weigh(name: bytes, body: memoryview, budget: Budget) -> None:
    """Count what readers keep of a chunk: text, colour profile or EXIF, unpacked."""
    if name in (b"tEXt", b"eXIf"):
        budget.take(len(body))
    elif name in (b"zTXt", b"iCCP"):
        _, _, rest = bytes(body).partition(b"\0")
        budget.unpack(rest[1:])
    elif name == b"iTXt":
        _, _, rest = bytes(body).partition(b"\0")
        _, _, text = rest[2:].partition(b"\0")[2].partition(b"\0")
        budget.take(len(body))
        if rest[:1] != b"\0":
            budget.unpack(text)


def _harmless(name: bytes, body: memoryview) -> bool:
    if name in _UNPLAIN:
        return False
    if name == b"eXIf":
        return upright_exif(bytes(body))
    if name in _TEXTS:
        return _harmless_text(bytes(body))
    # Ours to skip, by its first letter; and of this version of PNG, by its third: libpng refuses any other.
    return name in _CRITICAL or (name[:1].islower() and name[2:3].isupper())


def _harmless_text(body: bytes) -> bool:
    key, _, rest = body.partition(b"\0")
    if key == b"XML:com.adobe.xmp":
        compressed = rest[:1] != b"\0"
        return not compressed and upright_xmp(rest)
    return not key.startswith(b"Raw profile type") and key not in _ACTING_KEYS
