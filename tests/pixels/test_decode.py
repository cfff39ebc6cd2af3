"""Canonical bytes to pixels: exact, bounded, silent."""

from __future__ import annotations

import io
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from filmroll.errors import ImageFormatError, ImageLimitError
from filmroll.pixels.decode import decode, decoding
from filmroll.pixels.scratch import KEPT_BYTES
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
    start = time.process_time()
    assert decode(image.data, max_pixels=1 << 26).shape == (side, side, 3)
    Image.open(io.BytesIO(image.data))
    assert time.process_time() - start < 10
    assert not recwarn.list


SIZES = {"small": (31, 17), "one that is kept": (300, 200), "one that is not kept": (2400, 2400)}
assert KEPT_BYTES < 2400 * 2400 * 3


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_picture_to_be_dropped_is_the_same_picture(format_: str, channels: int, size: tuple[int, int]) -> None:
    data = saved(noise(*size, channels), format_)
    for _ in range(2):
        with decoding(data, max_pixels=2400**2) as picture:
            np.testing.assert_array_equal(picture, decode(data, max_pixels=2400**2))


def test_pictures_that_are_needed_at_once_do_not_share_memory() -> None:
    one, two = (saved(noise(31, 17 + more, 3), "PNG") for more in range(2))
    with decoding(one, max_pixels=10**6) as first, decoding(two, max_pixels=10**6) as second:
        np.testing.assert_array_equal(first, decode(one, max_pixels=10**6))
        assert not np.shares_memory(first, second)
    with ThreadPoolExecutor(1) as pool, decoding(one, max_pixels=10**6) as first:
        pool.submit(lambda: decoding(two, max_pixels=10**6).__enter__()).result()
        np.testing.assert_array_equal(first, decode(one, max_pixels=10**6))


def test_memory_is_used_again_even_after_a_failure() -> None:
    good, bad = saved(noise(31, 17, 3), "PNG"), saved(noise(31, 17, 3), "PNG")[:-40]
    with decoding(good, max_pixels=10**6) as first:
        pass
    with pytest.raises(ImageFormatError), decoding(bad, max_pixels=10**6):
        pass
    with decoding(good, max_pixels=10**6) as second:
        assert np.shares_memory(first, second)
