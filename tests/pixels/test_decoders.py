"""The fast decoders give Pillow's pixels, to the last bit, for every plain file; or leave it to Pillow."""

from __future__ import annotations

import io
import struct
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from filmroll.errors import ImageFormatError
from filmroll.pixels import decode as module
from filmroll.pixels.decode import decode
from filmroll.pixels.decoders import decode_jpeg, decode_png
from filmroll.pixels.scratch import Scratch
from filmroll.store.formats.header import Limits, read_header

side = st.integers(1, 70)


def content(height: int, width: int, channels: int, seed: int) -> Image.Image:
    """Smooth in some places and noisy in others, so that all filters and all frequencies occur."""
    draw = np.random.default_rng(seed)
    small = draw.integers(0, 256, (1 + height // 16, 1 + width // 16, channels), np.uint8).squeeze(
        axis=(2,) * (channels == 1)
    )
    smooth = np.asarray(Image.fromarray(small).resize((width, height), 3)).reshape(height, width, channels)
    noise = draw.normal(0, 40, smooth.shape) * (draw.random(smooth.shape[:1]) < 0.5)[:, None, None]
    pixels = (smooth + noise).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def header(data: bytes):
    return read_header(data, Limits())


@settings(max_examples=150, deadline=None)
@given(
    side,
    side,
    st.sampled_from([1, 3]),
    st.integers(0, 2**32 - 1),
    st.integers(1, 100),
    st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "keep_rgb"]),
    st.booleans(),
    st.integers(0, 3),
)
def test_jpeg(
    height: int, width: int, channels: int, seed: int, quality: int, sampling: str, progressive: bool, restarts: int
) -> None:
    out = io.BytesIO()
    options = {"keep_rgb": True} if sampling == "keep_rgb" and channels == 3 else {}
    if channels == 3 and not options:
        options = {"subsampling": sampling if sampling != "keep_rgb" else "4:4:4"}
    content(height, width, channels, seed).save(
        out, "JPEG", quality=quality, progressive=progressive, restart_marker_blocks=restarts, **options
    )
    data = out.getvalue()
    fast = decode_jpeg(data, header(data), Scratch())
    assert fast is not None
    np.testing.assert_array_equal(fast, pillow(data))


@settings(max_examples=150, deadline=None)
@given(side, side, st.sampled_from([1, 3]), st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_png(height: int, width: int, channels: int, seed: int, level: int) -> None:
    out = io.BytesIO()
    content(height, width, channels, seed).save(out, "PNG", compress_level=level)
    data = out.getvalue()
    fast = decode_png(data, header(data), Scratch())
    assert fast is not None
    np.testing.assert_array_equal(np.broadcast_to(fast, (height, width, 3)), pillow(data))


def png(height: int, width: int, rows: bytes, *, colour: int = 2, parts: int = 1) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))

    stream = zlib.compress(rows)
    cuts = [len(stream) * part // parts for part in range(parts + 1)]
    idat = b"".join(chunk(b"IDAT", stream[one:two]) for one, two in pairwise(cuts))
    ihdr = struct.pack(">LLBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + idat + chunk(b"IEND", b"")


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.sampled_from([0, 2]), st.data(), st.integers(1, 4))
def test_png_of_every_filter(height: int, width: int, colour: int, data: st.DataObject, parts: int) -> None:
    """Rows as an encoder may write them, any filter on any row, the stream in several chunks."""
    row = width * (3 if colour == 2 else 1)
    filters = data.draw(st.lists(st.integers(0, 4), min_size=height, max_size=height))
    seed = data.draw(st.integers(0, 2**32 - 1))
    noise = np.random.default_rng(seed).integers(0, 256, (height, row), np.uint8)
    rows = b"".join(bytes([kind]) + line.tobytes() for kind, line in zip(filters, noise, strict=True))
    file = png(height, width, rows, colour=colour, parts=parts)
    fast = decode_png(file, header(file), Scratch())
    assert fast is not None
    np.testing.assert_array_equal(np.broadcast_to(fast, (height, width, 3)), pillow(file))


def test_what_the_fast_ones_hesitate_at_is_pillows() -> None:
    out = io.BytesIO()
    short, long, unknown = b"\0" * 39, b"\0" * 400, b"\5" + b"\0" * 9
    for rows in (short, unknown * 4):
        file = png(4, 3, rows)
        assert decode_png(file, header(file), Scratch()) is None
        with pytest.raises(ImageFormatError):
            decode(file, max_pixels=100)
    file = png(4, 3, long)
    assert (decode(file, max_pixels=100) == 0).all()
    content(20, 20, 3, 0).save(out, "JPEG")
    cut = out.getvalue()[:-200] + b"\xff\xd9"
    np.testing.assert_array_equal(decode(cut, max_pixels=400).shape, (20, 20, 3))


def test_more_than_the_header_promises_is_not_inflated() -> None:
    bomb = png(1, 1, b"\0" * (1 << 28))
    assert decode_png(bomb, header(bomb), Scratch()).shape == (1, 1, 3)


def test_without_them_everything_works(monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for form in ("JPEG", "PNG", "WEBP"):
        out = io.BytesIO()
        content(40, 30, 3, 1).save(out, form)
        files.append(out.getvalue())
    fast = [decode(data, max_pixels=10_000) for data in files]
    monkeypatch.setattr("filmroll.pixels.decoders.simplejpeg", None)
    monkeypatch.setattr("filmroll.pixels.decoders.isal_zlib", None)
    assert module._FAST["JPEG"](files[0], header(files[0]), Scratch()) is None
    for one, data in zip(fast, files, strict=True):
        np.testing.assert_array_equal(one, decode(data, max_pixels=10_000))
