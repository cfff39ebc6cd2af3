"""Random pictures and sizes for the parity suite; the same every time."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from PIL import Image

from filmroll.store.ingest.canonical import canonical
from tests.families.cases.base import Case

MODES = ("RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16", "YCbCr")
ORIENTATION = 0x0112
Size = tuple[int, int]
"""(height, width)"""

EDGES: tuple[Size, ...] = (
    *((1, 1), (1, 2), (2, 1), (1, 200), (200, 1), (1, 201), (201, 1), (1, 2000), (2000, 1), (3, 600), (3, 601)),
    *((10, 1999), (10, 2000), (10, 2001), (10000, 10000), (50, 10000), (10000, 49), (1080, 1920), (1920, 1080)),
)
COMMON_UNITS = (14, 16, 28, 32, 48, 64, 224, 336, 364, 384, 448, 512, 768, 896)
"""Sides that matter to one family or another, tried on all."""


def sizes(case: Case, count: int, seed: int = 0, *, most: int = 6000) -> list[Size]:
    """Sizes of which half are ordinary ones; the others lie where rounding, bounds or ratios turn over."""
    random = np.random.default_rng(seed)
    units = np.array([*COMMON_UNITS, *case.units * 5])

    def side() -> int:
        kind = random.integers(3)
        if kind == 0:
            return int(random.integers(1, most + 1))
        if kind == 1:
            return round(math.exp(random.uniform(0, math.log(most))))
        half = int(random.choice(units)) * int(random.integers(1, 40)) // 2
        return min(most, max(1, half + int(random.integers(-1, 2))))

    def size() -> Size:
        height, width = side(), side()
        kind = random.integers(4)
        if kind == 0 and case.areas:
            width = int(random.choice(case.areas)) // height + int(random.integers(-2, 3))
        elif kind == 1:
            width = height * int(random.integers(1, 12)) // int(random.integers(1, 12)) + int(random.integers(-1, 2))
        width = min(most, max(1, width))
        return (height, width) if random.integers(2) else (width, height)

    return [size() for _ in range(count)]


def noise(height: int, width: int, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def of_mode(mode: str, height: int, width: int, seed: int) -> Image.Image:
    """A picture whose every band is noise."""
    if mode == "I;16":
        return Image.fromarray(np.random.default_rng(seed).integers(0, 2**16, (height, width), np.uint16))
    if mode in ("1", "P"):
        return Image.fromarray(noise(height, width, seed)).convert(mode)
    bands = len(Image.new(mode, (1, 1)).getbands())
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, bands), np.uint8)
    return Image.frombytes(mode, (width, height), levels.tobytes())


def stored(picture: Any) -> bytes:
    """What a store keeps of it."""
    return canonical(picture).data


def turned(form: str, orientation: int, height: int, width: int) -> bytes:
    """A file that says it is to be shown in another orientation."""
    image = of_mode("RGB", height, width, orientation)
    image.getexif()[ORIENTATION] = orientation
    file = io.BytesIO()
    image.save(file, form, exif=image.getexif())
    return file.getvalue()
