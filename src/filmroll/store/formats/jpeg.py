"""JPEG: its segments from SOI through EOI, entropy-coded data passed over."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from filmroll.errors import ImageLimitError
from filmroll.store.formats.base import Header, Limits, broken, most_parts, too_many_parts
from filmroll.store.formats.metadata import upright_exif, upright_xmp

SIGNATURE = b"\xff\xd8\xff"

MAX_SCANS = 128
"""Each scan of a progressive file costs a pass over all its pixels; encoders write about ten."""

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""The next marker in entropy-coded data: no stuffed zero, no restart, no fill byte."""

_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES = {0xC0, 0xC1, 0xC2}
"""Baseline, extended and progressive: what every decoder reads. Others are arithmetic or lossless."""
_APP1, _APP2 = 0xE1, 0xE2
_SOS, _EOI = 0xDA, 0xD9
_XMP_NAME = b"http://ns.adobe.com/xap/1.0/\0"


@dataclass(slots=True)
class _Walk:
    size: tuple[int, int] | None = None
    plain: bool = True
    scans: int = 0
    exifs: int = 0


def jpeg_header(data: bytes, limits: Limits) -> Header:
    walk = _Walk()
    place = 2
    most = most_parts(data)
    for _ in range(most):
        marker, place = _next_marker(data, place, walk)
        if marker == _EOI:
            break
        place = _segment(data, marker, place, walk, limits)
    else:
        raise too_many_parts("JPEG", "segments", most)
    if walk.size is None or not walk.scans:
        raise broken("JPEG", "it holds no pixels")
    return Header("JPEG", *walk.size, walk.plain)


def _next_marker(data: bytes, place: int, walk: _Walk) -> tuple[int, int]:
    """The marker at or after `place`, and where its segment begins; strays between segments are not plain."""
    found = _MARKER.search(data, place)
    if found is None:
        raise broken("JPEG", "it ends before its end-of-image marker")
    if not walk.scans and data[place : found.start()].strip(b"\xff"):
        walk.plain = False
    return data[found.end() - 1], found.end()


def _segment(data: bytes, marker: int, place: int, walk: _Walk, limits: Limits) -> int:
    """Take in one segment; where the next one may begin."""
    if marker in (0x01, 0xD8):
        walk.plain = False
        return place
    if place + 2 > len(data):
        raise broken("JPEG", "it ends within a segment")
    length = int.from_bytes(data[place : place + 2], "big")
    if length < 2 or place + length > len(data):
        raise broken("JPEG", "it ends within a segment")
    body = data[place + 2 : place + length]
    if marker in _FRAMES:
        _frame(marker, body, walk, limits)
    elif marker == _SOS:
        _scan(walk)
    elif marker in (_APP1, _APP2):
        walk.plain = walk.plain and _harmless(marker, body, walk)
    return place + length


def _frame(marker: int, body: bytes, walk: _Walk, limits: Limits) -> None:
    if walk.size is not None:
        raise broken("JPEG", "it has two frame headers")
    if len(body) < 6:
        raise broken("JPEG", "it ends within a segment")
    bits, height, width, components = struct.unpack_from(">BHHB", body)
    limits.check_size(width, height)
    walk.size = width, height
    if marker not in _HUFFMAN_FRAMES or bits != 8 or components not in (1, 3):
        walk.plain = False


def _scan(walk: _Walk) -> None:
    if walk.size is None:
        raise broken("JPEG", "its pixels come before its frame header")
    walk.scans += 1
    if walk.scans > MAX_SCANS:
        raise ImageLimitError(f"the JPEG file has more than {MAX_SCANS} scans", remedy="Write it with fewer")


def _harmless(marker: int, body: bytes, walk: _Walk) -> bool:
    if marker == _APP1 and body.startswith(b"Exif\0\0"):
        walk.exifs += 1
        return walk.exifs == 1 and upright_exif(body)
    if marker == _APP1 and body.startswith(_XMP_NAME):
        return upright_xmp(body)
    return not (marker == _APP2 and body.startswith(b"MPF\0"))
