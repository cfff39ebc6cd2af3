"""Pictures for tests, in every mode and format, and what each must look like to a reader."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

ORIENTATION = 0x0112

MODES: dict[str, tuple[str, ...]] = {
    "PNG": ("1", "L", "L+key", "LA", "I;16", "I;16+key", "P", "P+key", "P+alphas", "RGB", "RGB+key", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("L", "RGB", "RGBA"),
    "GIF": ("1", "L", "P", "P+key", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "I;16", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"),
}
"""Modes that Pillow writes, by format."""

ORIENTED = ("PNG", "JPEG", "WEBP", "TIFF")
"""Formats that can say how a picture is turned."""


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> npt.NDArray[np.uint8]:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return pixels if channels > 1 else pixels[:, :, 0]


def picture(mode: str, width: int, height: int, seed: int = 0) -> tuple[Image.Image, dict[str, Any]]:
    """A random picture of a mode, and what to tell Pillow when it is saved."""
    base, _, extra = mode.partition("+")
    options: dict[str, Any] = {}
    if base == "I;16":
        wide = np.random.default_rng(seed).integers(0, 65_536, (height, width), np.uint16)
        image = Image.fromarray(wide)
        key: Any = int(wide[0, 0])
    elif base in ("P", "PA"):
        image = Image.fromarray(noise(width, height, 3, seed)).quantize(16)
        key = image.getpixel((0, 0))
        if base == "PA":
            image = image.convert("PA")
            image.putalpha(Image.fromarray(noise(width, height, 1, seed + 1)))
    else:
        channels = {"1": 1, "L": 1, "LA": 2, "RGBA": 4}.get(base, 3)
        pixels = noise(width, height, channels, seed)
        image = Image.fromarray(pixels)
        if image.mode != base:
            image = image.convert(base)
        key = image.getpixel((0, 0))
    if extra == "key":
        options["transparency"] = key
    elif extra == "alphas":
        options["transparency"] = bytes(np.random.default_rng(seed).integers(0, 256, 16, np.uint8))
    return image, options


def encode(image: Image.Image, format_: str, *, orientation: int | None = None, **options: Any) -> bytes:
    out = BytesIO()
    if orientation is not None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    image.save(out, format_, **options)
    return out.getvalue()


def seen(data: bytes) -> npt.NDArray[np.uint8]:
    """The policy of law 1, spelled out by other means: upright, on white, 8 bits, RGB."""
    image = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    if image.mode.startswith("I;16"):
        wide = np.asarray(image)
        grey = (wide // 256).astype(np.uint8)
        if "transparency" in image.info:
            grey = np.where(wide == image.info["transparency"], 255, grey).astype(np.uint8)
        return np.stack([grey] * 3, axis=-1)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba.split()[3])
        image = white
    return np.asarray(image.convert("RGB"))


def pillow_rgb(data: bytes) -> npt.NDArray[np.uint8]:
    """What a reader sees that knows nothing but `convert`."""
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))


def png_file(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG of unfiltered `rows`, each with its leading zero."""
    header = struct.pack(">LLBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            *chunks,
            png_chunk(b"IDAT", zlib.compress(rows)),
            png_chunk(b"IEND", b""),
        )
    )


def with_chunk(png: bytes, name: bytes, body: bytes) -> bytes:
    """The PNG with one more chunk after its header."""
    return png[:33] + png_chunk(name, body) + png[33:]


def sample_files() -> dict[str, bytes]:
    """One small valid file of every format."""
    image = Image.fromarray(noise(24, 16, seed=5))
    return {
        "PNG": encode(image, "PNG"),
        "JPEG": encode(image, "JPEG"),
        "WEBP": encode(image, "WEBP"),
        "GIF": encode(image, "GIF"),
        "BMP": encode(image, "BMP"),
        "TIFF": encode(image, "TIFF"),
    }
