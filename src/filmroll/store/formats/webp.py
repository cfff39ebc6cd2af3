"""WebP: the RIFF container and the chunks in it."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from filmroll.store.formats.base import Header, Limits, broken, most_parts, too_many_parts
from filmroll.store.formats.metadata import Budget, upright_exif, upright_xmp

_ALPHA_FLAG, _ANIMATION_FLAG = 0x10, 0x02
_UNPLAIN = (b"ALPH", b"ANIM", b"ANMF")
_METADATA = (b"EXIF", b"XMP ", b"ICCP")
_FIRST = (b"VP8 ", b"VP8L", b"VP8X")


def is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def webp_header(data: bytes, limits: Limits) -> Header:
    if len(data) < 20 or data[12:16] not in _FIRST:
        raise broken("WEBP", "it does not begin with a picture or its extended header")
    sizes: list[tuple[int, int]] = []
    plain, pixels, budget = True, 0, Budget("WEBP")
    for name, body in _chunks(data):
        if name in _METADATA:
            budget.take(len(body))
        if name in _FIRST:
            width, height, opaque = _size(name, body)
            limits.check_size(width, height)
            sizes.append((width, height))
            plain = plain and opaque
        pixels += name in (b"VP8 ", b"VP8L", b"ANMF")
        plain = plain and _harmless(name, body)
    if not pixels:
        raise broken("WEBP", "it holds no pixels")
    (declared,) = struct.unpack_from("<L", data, 4)
    plain = plain and pixels == 1 and len(set(sizes)) == 1 and declared + 8 == len(data)
    return Header("WEBP", *sizes[0], plain)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    (declared,) = struct.unpack_from("<L", data, 4)
    end = declared + 8
    if end > len(data):
        raise broken("WEBP", "it is shorter than it says")
    place = 12
    most = most_parts(data)
    for _ in range(most):
        if place == end:
            return
        if place + 8 > end:
            raise broken("WEBP", "it ends within a chunk")
        name = data[place : place + 4]
        (length,) = struct.unpack_from("<L", data, place + 4)
        if place + 8 + length > end:
            raise broken("WEBP", "it ends within a chunk")
        yield name, data[place + 8 : place + 8 + length]
        # Chunks are padded to even lengths; some encoders leave the last one odd.
        place = min(place + 8 + length + (length & 1), end)
    raise too_many_parts("WEBP", "chunks", most)


def _size(name: bytes, body: bytes) -> tuple[int, int, bool]:
    """Width, height, and whether nothing speaks of transparency or animation."""
    if len(body) < 10:
        raise broken("WEBP", "it ends within a header")
    if name == b"VP8X":
        width, height = (int.from_bytes(body[at : at + 3], "little") + 1 for at in (4, 7))
        return width, height, not body[0] & (_ALPHA_FLAG | _ANIMATION_FLAG)
    if name == b"VP8L":
        (bits,) = struct.unpack_from("<L", body, 1)
        if body[0] != 0x2F:
            raise broken("WEBP", "its lossless picture has no signature")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, not bits >> 28 & 1
    if body[0] & 1 or body[3:6] != b"\x9d\x01\x2a":
        raise broken("WEBP", "its picture is no key frame")
    width, height = struct.unpack_from("<HH", body, 6)
    return width & 0x3FFF, height & 0x3FFF, True


def _harmless(name: bytes, body: bytes) -> bool:
    if name == b"EXIF":
        return upright_exif(body)
    if name == b"XMP ":
        return upright_xmp(body)
    return name not in _UNPLAIN
