"""Canonical bytes to pixels: exact, bounded, silent."""

from __future__ import annotations

import io
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from filmroll.errors import ImageFormatError, ImageLimitError
from filmroll.pixels.decode import decode
from filmroll.store.ingest.canonical import canonical


def saved(image: Image.Image, format_: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


def noise(width: int, height: int, channels: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(pixels.squeeze())


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_pillow(format_: str, channels: int) -> None:
    data = saved(noise(31, 17, channels), format_)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = decode(data, max_pixels=31 * 17)
    assert (pixels.shape, pixels.dtype) == ((17, 31, 3), np.uint8)
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_the_limit_comes_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(noise(31, 17, 3), "PNG")
    monkeypatch.setattr("filmroll.pixels.decode.decode_any", None)
    monkeypatch.setattr("filmroll.pixels.decode._FAST", {"PNG": None})
    with pytest.raises(ImageLimitError):
        decode(data, max_pixels=31 * 17 - 1)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'

NOT_CANONICAL = {
    "empty": b"",
    "text": b"hello",
    "gif": saved(noise(8, 8, 3), "GIF"),
    "alpha": saved(noise(8, 8, 4), "PNG"),
    "alpha-webp": saved(noise(8, 8, 4), "WEBP", lossless=True),
    "key": saved(noise(8, 8, 3), "PNG", transparency=(1, 2, 3)),
    "palette": saved(noise(8, 8, 3).convert("P"), "PNG"),
    "1-bit": saved(noise(8, 8, 1).convert("1"), "PNG"),
    "16-bit": saved(Image.fromarray(np.zeros((8, 8), np.uint16)), "PNG"),
    "cmyk": saved(noise(8, 8, 3).convert("CMYK"), "JPEG"),
    "turned-jpeg": saved(noise(8, 8, 3), "JPEG", exif=turned(6)),
    "turned-png": saved(noise(8, 8, 3), "PNG", exif=turned(6)),
    "turned-webp": saved(noise(8, 8, 3), "WEBP", exif=turned(6)),
    "turned-jpeg-xmp": saved(noise(8, 8, 3), "JPEG", xmp=XMP),
    "turned-webp-xmp": saved(noise(8, 8, 3), "WEBP", xmp=XMP),
    "animated-png": saved(noise(8, 8, 3), "PNG", save_all=True, append_images=[noise(8, 8, 1).convert("RGB")]),
    "animated-webp": saved(noise(8, 8, 3), "WEBP", save_all=True, append_images=[noise(8, 8, 1).convert("RGB")]),
    "mpo": saved(noise(8, 8, 3), "MPO", save_all=True, append_images=[noise(8, 8, 3)]),
    "truncated": saved(noise(8, 8, 3), "PNG")[:-1],
}


@pytest.mark.parametrize("name", NOT_CANONICAL)
def test_what_no_store_would_have_kept_is_refused(name: str) -> None:
    with pytest.raises(ImageFormatError):
        decode(NOT_CANONICAL[name], max_pixels=1 << 20)


def test_a_picture_of_many_megapixels_makes_no_noise(recwarn: pytest.WarningsRecorder) -> None:
    """Law 1 reaches readers of other houses: at our limit Pillow does not warn yet."""
    side = 1 << 13
    image = canonical(np.zeros((side, side), np.uint8))
    start = time.perf_counter()
    assert decode(image.data, max_pixels=1 << 26).shape == (side, side, 3)
    Image.open(io.BytesIO(image.data))
    assert time.perf_counter() - start < 10
    assert not recwarn.list
