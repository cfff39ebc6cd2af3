"""Bytes from strangers: a typed error that says nothing private, or a whole canonical image, always."""

from __future__ import annotations

import re
import resource
import struct
import time
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from filmroll.errors import FilmrollError, ImageError, ImageFormatError, ImageLimitError
from filmroll.pixels.decode import decode
from filmroll.store.formats.header import Limits, read_header
from filmroll.store.formats.pillow import image_errors
from filmroll.store.ingest import canonical as ingest
from filmroll.store.ingest.canonical import canonical
from filmroll.store.recent import Recent
from tests.store.pictures import encode, noise, png_chunk, png_file, sample_files

PRIVATE = re.compile(r"0x[0-9a-f]|(^|[\s'\"(])/\w|<[\w.]+ (object|at)")
FILES = sample_files()
WALKED = ("PNG", "JPEG", "WEBP")


def check_error(error: FilmrollError) -> None:
    assert isinstance(error, ImageError)
    assert not PRIVATE.search(str(error.wire()["message"])), error.wire()
    assert "0x" not in str(error)


def huge(format_: str) -> bytes:
    """A file that claims 20,000 x 20,000 pixels (WebP: 9,000, where Pillow would not object) and holds almost none."""
    image = Image.new("RGB", (16, 16))
    data = bytearray(encode(image, format_))
    side = 20_000
    if format_ == "PNG":
        return png_file(side, side, 8, 2, b"\0" * 100)
    if format_ == "JPEG":
        frame = data.index(b"\xff\xc0")
        struct.pack_into(">HH", data, frame + 5, side, side)
    elif format_ == "WEBP":
        struct.pack_into("<HH", data, 26, 9_000, 9_000)
    elif format_ == "GIF":
        struct.pack_into("<HH", data, 6, side, side)
    elif format_ == "BMP":
        struct.pack_into("<LL", data, 18, side, side)
    else:
        for tag in (256, 257):
            place = data.index(struct.pack("<HH", tag, 4)) if struct.pack("<HH", tag, 4) in data else -1
            if place < 0:
                place = data.index(struct.pack("<HH", tag, 3))
            struct.pack_into("<L", data, place + 8, side)
    return bytes(data)


@pytest.mark.parametrize("format_", FILES)
def test_a_huge_header_costs_neither_time_nor_memory(format_: str) -> None:
    data = huge(format_)
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(ImageLimitError) as caught:
        canonical(data)
    seconds = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 0.1
    assert peak < 1 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10
    check_error(caught.value)


def test_a_small_file_of_many_pixels_is_refused_unopened() -> None:
    data = png_file(30_000, 3_000, 8, 2, bytes(3_000 * (1 + 3 * 30_000)))
    assert len(data) < 1 << 19
    start = time.process_time()
    with pytest.raises(ImageLimitError):
        canonical(data)
    assert time.process_time() - start < 0.1


def test_each_limit_is_kept() -> None:
    data = FILES["PNG"]
    for limits in (Limits(max_pixels=24 * 16 - 1), Limits(max_side=23), Limits(max_bytes=100)):
        for source in (data, noise(24, 16), Image.fromarray(noise(24, 16))):
            with pytest.raises(ImageLimitError):
                canonical(source, limits)
    canonical(data, Limits(max_pixels=24 * 16, max_side=24))


@pytest.mark.parametrize("format_", WALKED)
def test_truncation_is_found_at_every_byte_by_structure_alone(format_: str) -> None:
    data = FILES[format_]
    read_header(data, Limits())
    for length in range(len(data)):
        with pytest.raises(ImageFormatError) as caught:
            read_header(data[:length], Limits())
        check_error(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("format_", FILES)
def test_truncation_never_stores_half_a_picture(format_: str) -> None:
    data = FILES[format_]
    whole = canonical(data)
    for length in range(0, len(data), 7):
        try:
            image = canonical(data[:length])
        except FilmrollError as error:
            check_error(error)
        else:  # What was cut off held no pixels: GIF's trailer, BMP's padding.
            assert image == whole


def repeated_parts() -> dict[str, bytes]:
    png, jpeg = FILES["PNG"], FILES["JPEG"]
    progressive = encode(Image.fromarray(noise(24, 16)), "JPEG", progressive=True)
    scans = progressive[progressive.index(b"\xff\xda") : -2]
    return {
        "chunks": png[:33] + png_chunk(b"teSt", b"") * 100_000 + png[33:],
        "segments": jpeg[:-2] + b"\xff\xfe\0\2" * 100_000 + b"\xff\xd9",
        "scans": progressive[:-2] + scans * 1000 + b"\xff\xd9",
    }


@pytest.mark.parametrize("name", ["chunks", "segments", "scans"])
def test_many_tiny_parts_cost_no_minutes(name: str) -> None:
    data = repeated_parts()[name]
    start = time.process_time()
    with pytest.raises(ImageLimitError) as caught:
        canonical(data)
    assert time.process_time() - start < 2
    check_error(caught.value)


def test_every_changed_bit_of_a_png_is_found_without_decoding() -> None:
    data = FILES["PNG"]
    for place in range(8, len(data)):
        for bit in (1, 32):
            with pytest.raises(ImageError):
                read_header(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :], Limits())


@pytest.mark.parametrize(
    "error",
    [
        OSError("cannot identify image file <_io.BytesIO object at 0x7f0123456789>"),
        SyntaxError("at 0xdeadBEEF"),
        struct.error("unpack"),
        zlib.error("Error -3"),
        EOFError(),
        OverflowError("too big"),
        AttributeError("x"),
        RuntimeError("y"),
        UserWarning("a warning that is an error"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_decoders_raise_is_wrapped_without_addresses(error: Exception) -> None:
    with pytest.raises(ImageFormatError) as caught, image_errors("the PNG file"):
        raise error
    check_error(caught.value)


def test_what_is_too_large_for_memory_is_a_limit() -> None:
    for error in (MemoryError(), Image.DecompressionBombError("bomb")):
        with pytest.raises(ImageLimitError), image_errors("the PNG file"):
            raise error


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"hello", b"BM", b"GIF89a", b"II*\0", b"RIFF\0\0\0\0WEBP", b"\xff\xd8\xff"]
)
def test_fragments(data: bytes) -> None:
    with pytest.raises(ImageFormatError) as caught:
        canonical(data)
    check_error(caught.value)


def test_whole_structure_around_broken_pixels_is_found_at_put() -> None:
    """Every checksum is right, the compressed pixels are not."""
    cut = png_file(8, 8, 8, 2, b"\0" * 20)
    garbage = png_file(8, 8, 8, 2, b"").replace(
        png_chunk(b"IDAT", b"x\x9c\x03\0\0\0\0\x01"), png_chunk(b"IDAT", b"garbage")
    )
    for data in (cut, garbage):
        with pytest.raises(ImageFormatError):
            canonical(data)


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    data = bytearray(FILES[draw(st.sampled_from(sorted(FILES)))])
    for _ in range(draw(st.integers(1, 4))):
        # Most of the meaning is in the first bytes.
        place = draw(st.one_of(st.integers(0, 64), st.integers(0, len(data))))
        kind = draw(st.sampled_from(["set", "cut", "insert", "repeat"]))
        length = draw(st.integers(1, 8))
        if kind == "set":
            data[place : place + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "cut":
            del data[place : place + length]
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
        else:
            data[place:place] = data[place : place + 20 * length]
    return bytes(data)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=300, deadline=None)
@given(data=mutations())
def test_mutated_files_are_refused_by_name_or_become_whole_images(data: bytes) -> None:
    try:
        image = canonical(data, Limits(max_pixels=1 << 20))
    except FilmrollError as error:
        check_error(error)
    else:
        assert decode(image.data, max_pixels=1 << 20).shape == (image.height, image.width, 3)
        ingest._proved = Recent(1 << 10)
        assert canonical(image.data) == image


@pytest.mark.parametrize("compression", ["zstd", "lzma", "webp"])
def test_a_tiff_of_a_rare_compression_is_refused(compression: str) -> None:
    """Fewer libraries see strangers' bytes, and none that is asked for gigabytes by a header of its own."""
    image = Image.fromarray(noise(24, 16))
    try:
        data = encode(image, "TIFF", compression=compression)
    except (OSError, ValueError, KeyError):
        pytest.skip(f"this Pillow writes no TIFF with {compression}")
    with pytest.raises(ImageFormatError, match="compressed in a way"):
        canonical(data)


@pytest.mark.parametrize(
    "compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group3", "group4"]
)
def test_a_tiff_of_a_usual_compression_is_taken(compression: str) -> None:
    mode = "1" if compression.startswith("group") else "RGB"
    canonical(encode(Image.fromarray(noise(24, 16)).convert(mode), "TIFF", compression=compression))


@pytest.mark.parametrize("name", [b"VP8 ", b"VP8L", b"VP8X"])
def test_a_webp_that_ends_within_its_header_is_broken(name: bytes) -> None:
    for length in range(10):
        body = b"WEBP" + name + struct.pack("<L", length) + bytes(length + 10)
        for data in (body, body[: 12 + length]):
            with pytest.raises(ImageFormatError, match="broken"):
                read_header(b"RIFF" + struct.pack("<L", len(data)) + data, Limits())
