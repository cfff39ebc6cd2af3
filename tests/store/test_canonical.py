"""Law 1: whatever was put in, every decoder sees the same pixels and the same size."""

from __future__ import annotations

import io
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from filmroll.errors import ImageFormatError
from filmroll.pixels.decode import decode
from filmroll.store import open_store
from filmroll.store.ingest import canonical as ingest
from filmroll.store.ingest.canonical import Canonical, canonical
from filmroll.store.recent import Recent
from tests.store.pictures import (
    MODES,
    ORIENTED,
    encode,
    noise,
    picture,
    pillow_rgb,
    png_chunk,
    png_file,
    sample_files,
    seen,
    with_chunk,
)

CASES = [(format_, mode) for format_, modes in MODES.items() for mode in modes]


def forget() -> None:
    """Make this process look at every file again, as another one would."""
    ingest._proved = Recent(1 << 10)


def pixels(image: Canonical) -> np.ndarray:
    decoded = decode(image.data, max_pixels=1 << 26)
    assert decoded.shape == (image.height, image.width, 3)
    return decoded


@pytest.mark.parametrize(("format_", "mode"), CASES)
@settings(max_examples=10, deadline=None)
@given(orientation=st.integers(1, 8), width=st.integers(1, 40), height=st.integers(1, 40), seed=st.integers(0, 2**16))
def test_law_canonical(format_: str, mode: str, orientation: int, width: int, height: int, seed: int) -> None:
    from transformers.image_utils import load_image

    image, options = picture(mode, width, height, seed)
    data = encode(image, format_, orientation=orientation if format_ in ORIENTED else None, **options)
    expected = seen(data)

    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        ref = store.put(data)
        stored = store.read(ref)
        loaded = np.asarray(load_image(str(Path(folder) / ref.sha256[:2] / Path(ref.uri).name)))

    assert (ref.height, ref.width) == expected.shape[:2]
    np.testing.assert_array_equal(decode(stored, max_pixels=1 << 26), expected)
    np.testing.assert_array_equal(pillow_rgb(stored), expected)
    np.testing.assert_array_equal(loaded, expected)
    forget()
    assert canonical(stored).data == stored


@pytest.mark.parametrize(("format_", "mode"), [("PNG", "L"), ("PNG", "RGB"), ("JPEG", "L"), ("JPEG", "RGB")])
@pytest.mark.parametrize("orientation", [None, 1])
def test_plain_files_keep_their_bytes(format_: str, mode: str, orientation: int | None) -> None:
    data = encode(picture(mode, 20, 12)[0], format_, orientation=orientation)
    assert canonical(data).data == data


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"quality": 30}], ids=str)
def test_plain_webp_keeps_its_bytes(options: dict[str, object]) -> None:
    data = encode(picture("RGB", 20, 12)[0], "WEBP", **options)
    image = canonical(data)
    assert (image.data, image.media_type) == (data, "image/webp")


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}], ids=str)
def test_unusual_but_plain_jpeg_keeps_its_bytes(options: dict[str, object]) -> None:
    data = encode(picture("RGB", 50, 50)[0], "JPEG", **options)
    assert canonical(data).data == data


def test_colour_profile_and_resolution_do_not_cost_a_plain_file_its_bytes() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for format_ in ("PNG", "JPEG"):
        data = encode(picture("RGB", 9, 9)[0], format_, icc_profile=profile, dpi=(300, 300))
        assert canonical(data).data == data


def test_grey_stays_grey_in_storage() -> None:
    image = canonical(noise(10, 10, 1))
    assert Image.open(io.BytesIO(image.data)).mode == "L"
    assert len(np.unique(np.ptp(pixels(image), axis=2))) == 1


def test_the_same_pixels_give_the_same_bytes_whatever_they_came_with() -> None:
    image = Image.fromarray(noise(30, 20))
    image.info.update(dpi=(300, 300), icc_profile=b"profile", comment="hello", exif=b"")
    assert canonical(image).data == canonical(noise(30, 20)).data == canonical(encode(image, "BMP")).data


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_is_its_first_frame(format_: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "green")]
    options = {"lossless": True} if format_ == "WEBP" else {}
    data = encode(frames[0], format_, save_all=True, append_images=frames[1:], **options)
    image = canonical(data)
    assert image.media_type == "image/png"
    assert (pixels(image) == (255, 0, 0)).all()


def test_mpo_is_its_first_picture() -> None:
    frames = [Image.fromarray(noise(32, 24, seed=seed)) for seed in (1, 2)]
    data = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    image = canonical(data)
    assert image.media_type == "image/png"
    np.testing.assert_array_equal(pixels(image), pillow_rgb(data))


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("key", [False, True])
def test_narrow_grey_is_widened_and_its_key_with_it(depth: int, key: bool) -> None:
    """The key of a 2 or 4 bit PNG counts in file samples, not in the 8 bits they become."""
    top = (1 << depth) - 1
    samples = np.arange(8 * 4).reshape(4, 8) % (top + 1)
    bits = (samples[..., None] >> np.arange(depth)[::-1]) & 1
    packed = np.packbits(bits.reshape(4, -1).astype(np.uint8), axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    chunks = (png_chunk(b"tRNS", struct.pack(">H", 1)),) if key else ()

    grey = pixels(canonical(png_file(8, 4, depth, 0, rows, *chunks)))[:, :, 0]

    wide = samples * 255 // top
    np.testing.assert_array_equal(grey, np.where(samples == 1, 255, wide) if key else wide)


def test_16_bits_become_their_high_byte_in_grey_colour_and_arrays_alike() -> None:
    wide = np.array([[0, 0x00FF, 0x0100, 0x7FFF, 0x80FF, 0xFFFF]], np.uint16)
    expected = np.array([[0, 0, 1, 0x7F, 0x80, 0xFF]], np.uint8)
    grey = b"\0" + wide.astype(">u2").tobytes()
    colour = b"\0" + np.repeat(wide[..., None], 3, axis=2).astype(">u2").tobytes()
    tiff = encode(Image.fromarray(wide), "TIFF")
    for source in (wide, png_file(6, 1, 16, 0, grey), png_file(6, 1, 16, 2, colour), tiff, Image.fromarray(wide)):
        np.testing.assert_array_equal(pixels(canonical(source))[:, :, 1], expected)


def test_16_bit_colour_with_a_key_is_refused_rather_than_guessed() -> None:
    rows = b"\0" + bytes(6)
    with pytest.raises(ImageFormatError, match="16-bit"):
        canonical(png_file(1, 1, 16, 2, rows, png_chunk(b"tRNS", bytes(6))))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_range_are_refused_with_advice(mode: str) -> None:
    image = Image.new(mode, (4, 4))
    for source in (image, encode(image, "TIFF")):
        with pytest.raises(ImageFormatError, match=r"Scale them to 0..255"):
            canonical(source)


def xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def itxt(orientation: int) -> bytes:
    return b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(orientation)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_in_xmp_counts(orientation: int) -> None:
    image = picture("RGB", 9, 5)[0]
    for data in (
        encode(image, "JPEG", xmp=xmp(orientation)),
        encode(image, "WEBP", lossless=True, xmp=xmp(orientation)),
        with_chunk(encode(image, "PNG"), b"iTXt", itxt(orientation)),
    ):
        result = canonical(data)
        np.testing.assert_array_equal(pixels(result), seen(data))
        assert (result.data == data) == (orientation == 1)


def test_orientation_in_a_raw_profile_and_after_the_pixels_counts() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes()
    profile = b"Raw profile type exif\0" + f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
    png = encode(picture("RGB", 9, 5)[0], "PNG")
    late = png[:-12] + png_chunk(b"eXIf", block[6:]) + png[-12:]
    for data in (with_chunk(png, b"tEXt", profile), with_chunk(png, b"eXIf", block[6:]), late):
        image = canonical(data)
        assert (image.width, image.height) == (5, 9)
        np.testing.assert_array_equal(pixels(image), seen(data))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\x01\0"]
)
def test_broken_exif_is_left_behind(exif: bytes) -> None:
    data = encode(picture("RGB", 9, 5)[0], "JPEG", exif=exif)
    image = canonical(data)
    assert image.media_type == "image/png"
    np.testing.assert_array_equal(pixels(image), pillow_rgb(data))


def test_a_transparent_key_hidden_in_a_text_chunk_does_not_survive() -> None:
    data = with_chunk(encode(Image.new("RGB", (4, 4), "red"), "PNG"), b"tEXt", b"transparency\0x")
    with pytest.raises(ImageFormatError):
        canonical(data)


def test_adobe_inverted_cmyk_is_read_as_pillow_reads_it() -> None:
    data = encode(picture("CMYK", 16, 16)[0], "JPEG", quality=95)
    assert b"Adobe" in data
    np.testing.assert_array_equal(pixels(canonical(data)), pillow_rgb(data))


@pytest.mark.parametrize("format_", sample_files())
def test_trailing_bytes_change_no_pixel(format_: str) -> None:
    data = sample_files()[format_] + b"trailing"
    np.testing.assert_array_equal(pixels(canonical(data)), seen(data))


def test_the_decoder_has_the_last_word_on_what_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the walkers overlook something, a turned or transparent file is not stored as it is."""
    monkeypatch.setattr("filmroll.store.formats.png._harmless", lambda name, body: True)
    rgb = picture("RGB", 9, 5, seed=991)[0]
    for data in (encode(rgb, "PNG", orientation=6), encode(rgb, "PNG", transparency=rgb.getpixel((0, 0)))):
        image = canonical(data)
        assert image.data != data
        np.testing.assert_array_equal(pixels(image), seen(data))


def test_a_known_file_is_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.fromarray(noise(31, 17, seed=77)), "PNG")
    first = canonical(data)
    monkeypatch.setattr("filmroll.store.ingest.canonical.open_image", None)
    assert canonical(data) == first
