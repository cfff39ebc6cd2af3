"""Pictures for tests, in every mode and format, and what each must look like to a reader."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from random import Random
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
    return seen_in(Image.open(BytesIO(data)))


def seen_in(image: Image.Image) -> npt.NDArray[np.uint8]:
    image = ImageOps.exif_transpose(image)
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


def rechecked(png: bytes) -> bytes:
    """The PNG with every chunk's checksum made right, as far as there are chunks."""
    data, place = bytearray(png), 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">L", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">L", data, end, zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(data)


def interlaced_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """An 8-bit grey or RGB PNG whose rows come in Adam7's seven passes."""
    height, width = pixels.shape[:2]
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    parts = [pixels[top::down, left::across] for left, top, across, down in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    header = struct.pack(">LLBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 1)
    compressed = zlib.compress(rows)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            png_chunk(b"IDAT", compressed[:5]),
            png_chunk(b"IDAT", b""),
            png_chunk(b"IDAT", compressed[5:]),
            png_chunk(b"IEND", b""),
        )
    )


def mutated(random: Random, data: bytes) -> bytes:
    """The same file with a few bytes set, cut, put in or repeated, often near its beginning, where most meaning is."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        place = random.randrange(min(len(changed), random.choice((64, 400, 1 << 30))) or 1)
        length = random.randint(1, 8)
        kind = random.randrange(5)
        if kind == 0:
            changed[place : place + length] = random.randbytes(length)
        elif kind == 1:
            changed[place : place + 1] = bytes([(changed[place : place + 1] or b"\0")[0] ^ 1 << random.randrange(8)])
        elif kind == 2:
            del changed[place : place + length]
        elif kind == 3:
            changed[place:place] = random.randbytes(length)
        else:
            changed[place:place] = changed[place : place + 20 * length]
    return bytes(changed)
