"""Law 1 before the decoders of other houses: what is stored looks the same to each of them, to the last bit.

That holds for pictures of noise, whose every coefficient matters, with every way of writing JPEG, PNG and WebP that
keeps a file plain: all readers here, other builds of libjpeg-turbo, libpng and libwebp among them, are equal on every
sample. So no tolerance is needed; if one ever is, it belongs here, in numbers.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import TypeAlias

import numpy as np
import pytest
from PIL import Image, ImageCms

from filmroll.errors import FilmrollError
from filmroll.pixels.decode import decode
from filmroll.store.ingest.canonical import Limits, canonical
from tests.store.conftest import Show
from tests.store.effort import effort
from tests.store.oracles import Oracle, Rgb, torchvision_oracle, vllm_oracle
from tests.store.pictures import (
    MODES,
    ORIENTED,
    encode,
    interlaced_png,
    mutated,
    noise,
    picture,
    pillow_rgb,
    png_chunk,
    rechecked,
    seen,
    with_chunk,
)

Reader: TypeAlias = Callable[[list[bytes]], "list[Rgb | str]"]
SIZES = ((1, 1), (1, 40), (40, 1), (17, 13), (33, 47), (64, 48))
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def torchvision() -> Iterator[Oracle]:
    with torchvision_oracle() as oracle:
        yield oracle


@pytest.fixture(scope="module")
def vllm() -> Iterator[Oracle]:
    with vllm_oracle() as oracle:
        yield oracle


def by_pillow(files: list[bytes]) -> list[Rgb | str]:
    return [pillow_rgb(data) for data in files]


def by_ourselves(files: list[bytes]) -> list[Rgb | str]:
    return [decode(data, max_pixels=1 << 26) for data in files]


def by_transformers(files: list[bytes]) -> list[Rgb | str]:
    from transformers.image_utils import load_image

    def see(data: bytes) -> Rgb:
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            return np.asarray(load_image(file.name))

    return [see(data) for data in files]


@pytest.fixture(params=["ourselves", "pillow", "transformers", "torchvision", "vllm"])
def reader(request: pytest.FixtureRequest) -> Reader:
    ours = {"ourselves": by_ourselves, "pillow": by_pillow, "transformers": by_transformers}
    return ours.get(request.param) or request.getfixturevalue(request.param)


def same(reader: Reader, files: dict[str, bytes], expected: dict[str, Rgb]) -> None:
    views = dict(zip(files, reader(list(files.values())), strict=True))
    refused = {name: view for name, view in views.items() if isinstance(view, str)}
    assert not refused
    different = [name for name, view in views.items() if not np.array_equal(view, expected[name])]
    assert not different


# Plain files


def jpegs(picture: Image.Image) -> Iterator[tuple[str, bytes]]:
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        for progressive in (False, True):
            options = {"subsampling": subsampling, "progressive": progressive}
            yield f"JPEG {subsampling} {progressive}", encode(picture, "JPEG", **options)
    usual = encode(picture, "JPEG")
    yield "JPEG grey", encode(picture.convert("L"), "JPEG")
    yield "JPEG coarse", encode(picture, "JPEG", quality=3)
    yield "JPEG fine", encode(picture, "JPEG", quality=100)
    yield "JPEG in RGB", encode(picture, "JPEG", keep_rgb=True)
    yield "JPEG restarts", encode(picture, "JPEG", restart_marker_blocks=1)
    yield "JPEG optimized", encode(picture, "JPEG", optimize=True)
    yield "JPEG profile", encode(picture, "JPEG", icc_profile=PROFILE, dpi=(300, 300), comment="hello")
    yield "JPEG upright", encode(picture, "JPEG", orientation=1)
    yield "JPEG extended", usual.replace(b"\xff\xc0", b"\xff\xc1", 1)
    yield "JPEG components", _with_components(usual, b"RGB")
    yield "JPEG components from 0", _with_components(usual, b"\0\1\2")
    yield "JPEG trailing", usual + b"\xff\xd8 and more"


def _with_components(jpeg: bytes, names: bytes) -> bytes:
    """The JPEG with other names of its components, in its frame and in its scan."""
    data = bytearray(jpeg)
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    for at, name in enumerate(names):
        data[frame + 10 + 3 * at] = data[scan + 5 + 2 * at] = name
    return bytes(data)


def pngs(picture: Image.Image) -> Iterator[tuple[str, bytes]]:
    usual = encode(picture, "PNG")
    yield "PNG", usual
    yield "PNG grey", encode(picture.convert("L"), "PNG")
    yield "PNG interlaced", interlaced_png(np.asarray(picture))
    yield "PNG interlaced grey", interlaced_png(np.asarray(picture.convert("L")))
    yield "PNG stored", encode(picture, "PNG", compress_level=0)
    yield "PNG upright", encode(picture, "PNG", orientation=1)
    yield "PNG profile", encode(picture, "PNG", icc_profile=PROFILE, dpi=(300, 300))
    yield "PNG gamma", with_chunk(usual, b"gAMA", struct.pack(">L", 100_000))
    yield "PNG sRGB", with_chunk(usual, b"sRGB", b"\0")
    yield "PNG primaries", with_chunk(usual, b"cHRM", struct.pack(">8L", *[31270, 32900, 64000, 33000] * 2))
    yield "PNG background", with_chunk(usual, b"bKGD", struct.pack(">3H", 200, 10, 10))
    yield "PNG significant bits", with_chunk(usual, b"sBIT", b"\5\6\5")
    yield "PNG suggested palette", with_chunk(usual, b"PLTE", bytes(range(48)))
    yield "PNG text", with_chunk(usual, b"tEXt", b"Comment\0hello")
    yield "PNG trailing", usual + b"and more"


def webps(picture: Image.Image) -> Iterator[tuple[str, bytes]]:
    for options in ({}, {"quality": 3}, {"quality": 100, "method": 6}, {"lossless": True}, {"icc_profile": PROFILE}):
        yield f"WEBP {sorted(options)} {len(options.get('icc_profile', ''))}", encode(picture, "WEBP", **options)
    yield "WEBP upright", encode(picture, "WEBP", orientation=1)


def plain_files() -> dict[str, bytes]:
    """Every way to write a plain file, of noise and of something smooth, in sizes that fill no block."""
    files = {}
    for width, height in SIZES:
        noisy = Image.fromarray(noise(width, height, seed=width))
        smooth = Image.fromarray(noise(3, 3, seed=height)).resize((width, height), Image.Resampling.BICUBIC)
        for kind, image in (("noise", noisy), ("smooth", smooth)):
            for format_ in (jpegs, pngs, webps):
                files |= {f"{name} {kind} {width}x{height}": data for name, data in format_(image)}
    return files


PLAIN = plain_files()


def test_plain_files_are_plain() -> None:
    assert [name for name, data in PLAIN.items() if canonical(data).data != data] == []


def test_law_canonical_for_every_reader_of_plain_files(reader: Reader) -> None:
    same(reader, PLAIN, {name: seen(data) for name, data in PLAIN.items()})


# Other files


def other_files() -> dict[str, bytes]:
    files = {}
    for format_, modes in MODES.items():
        for mode in modes:
            for orientation in range(1, 9) if format_ in ORIENTED else (1,):
                image, options = picture(mode, 33, 21, seed=orientation + 2)
                turned = orientation if format_ in ORIENTED else None
                files[f"{format_} {mode} {orientation}"] = encode(image, format_, orientation=turned, **options)
    frames = [Image.fromarray(noise(20, 10, seed=seed)) for seed in range(3)]
    for format_ in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if format_ == "WEBP" else {}
        files[f"{format_} frames"] = encode(frames[0], format_, save_all=True, append_images=frames[1:], **options)
    files["JPEG frames"] = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    return files


OTHER = other_files()


def test_law_canonical_for_every_reader_of_other_files(reader: Reader) -> None:
    stored = {name: canonical(data).data for name, data in OTHER.items()}
    same(reader, stored, {name: seen(data) for name, data in OTHER.items()})


NOT_SEEN_ALIKE = {
    "GIF P+key", "GIF RGBA", "GIF frames", "PNG I;16", "PNG I;16+key", "PNG L+key", "PNG LA", "PNG P+alphas",
    "PNG P+key", "PNG RGB+key", "PNG RGBA", "WEBP RGBA", "WEBP frames",
}  # fmt: skip
"""What torchvision's reader shows otherwise than vLLM's policy does, though upright: transparency is dropped and not
put on white, 16 bits stay 16, animations come as all their frames or not at all."""


def test_why_other_files_are_not_stored_as_they_are(torchvision: Oracle) -> None:
    """Where readers agree already (CMYK, palettes, 1 bit), writing anew costs space and changes nothing."""
    files = {name: data for name, data in OTHER.items() if not name.startswith(("BMP", "TIFF"))}
    views = dict(zip(files, torchvision(list(files.values())), strict=True))
    different = {name for name, view in views.items() if not np.array_equal(view, seen(files[name]))}
    turned = {name for name in files if name[-1] in "2345678"}
    assert turned <= different
    assert {name.removesuffix(" 1") for name in different - turned} == NOT_SEEN_ALIKE


# Broken files that are readable


def readable_wrecks(count: int) -> dict[str, bytes]:
    """Mutated plain files that are kept as they are."""
    random, names = Random(2026), sorted(PLAIN)
    kept: dict[str, bytes] = {}
    for number in range(count):
        name = random.choice(names)
        data = mutated(random, PLAIN[name])
        if name.startswith("PNG") and random.random() < 0.9:
            data = rechecked(data)
        try:
            if canonical(data, Limits(max_pixels=1 << 20)).data == data:
                kept[f"{number} {name}"] = data
        except FilmrollError:
            continue
    return kept


@pytest.mark.reliability
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_law_canonical_for_files_that_are_damaged_and_readable(torchvision: Oracle, show: Show) -> None:
    """Decoders repair what is broken, each in its own way: what they do not repair alike must not be kept."""
    tried = effort(3_000, 200_000)
    wrecks = readable_wrecks(tried)
    expected = {name: pillow_rgb(data) for name, data in wrecks.items()}
    same(torchvision, wrecks, expected)
    same(by_ourselves, wrecks, expected)
    assert len(wrecks) > tried / 20
    show(
        "canonical",
        "0 seen otherwise by torchvision or by our readers",
        damaged_files=tried,
        kept_as_they_are=len(wrecks),
    )


def png_with_pixels(rows: bytes, *, size: tuple[int, int] = (8, 8), colour: int = 2, interlace: int = 0) -> bytes:
    return _png(zlib.compress(rows), size, 8, colour, interlace)


def _png(compressed: bytes, size: tuple[int, int], depth: int, colour: int, interlace: int) -> bytes:
    header = struct.pack(">LLBBBBB", *size, depth, colour, 0, 0, interlace)
    parts = (png_chunk(b"IHDR", header), png_chunk(b"IDAT", compressed), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


SOME = Random(5)
ROWS = b"".join(b"\0" + SOME.randbytes(24) for _ in range(8))


@pytest.mark.parametrize(
    "png",
    [
        png_with_pixels(ROWS[:-1]),
        png_with_pixels(ROWS[:25]),
        png_with_pixels(b""),
        png_with_pixels(ROWS, size=(8, 9)),
        png_with_pixels(ROWS, size=(1, 65_000)),
        png_with_pixels(ROWS, interlace=1),
        png_with_pixels(ROWS, size=(8, 7), colour=6),
        _png(zlib.compress(ROWS)[:-20], (8, 8), 8, 2, 0),
        _png(zlib.compress(ROWS, 0)[:100], (8, 8), 8, 2, 0),
        _png(zlib.compress(ROWS)[:-4] + b"sums", (8, 8), 8, 2, 0),
        _png(zlib.compress(ROWS[:-9])[:-4] + b"sums", (8, 8), 8, 2, 0),
        _png(zlib.compress(bytes(9 * 8 - 1)), (4, 8), 16, 2, 0),
        _png(zlib.compress(bytes(8)), (8, 5), 1, 0, 0),
        _png(zlib.compress(bytes(19)), (5, 5), 1, 0, 1),
    ],
    ids=zlib.crc32,
)
def test_pixels_that_end_early_or_do_not_add_up_are_no_picture(png: bytes) -> None:
    """Pillow alone would show black rows, and nothing would say so."""
    with pytest.raises(FilmrollError, match=r"PNG file (is broken|cannot be decoded)"):
        canonical(png)


@pytest.mark.parametrize(
    "compressed",
    [
        zlib.compress(ROWS + b"\0"),
        zlib.compress(ROWS + bytes(100_000)),
        zlib.compress(ROWS) + b"more",
        zlib.compress(ROWS)[:-1],
        zlib.compress(ROWS)[:-4],
        zlib.compress(ROWS) * 2,
    ],
    ids=zlib.crc32,
)
def test_pixels_that_do_not_end_where_they_should_are_written_anew(compressed: bytes, reader: Reader) -> None:
    png = _png(compressed, (8, 8), 8, 2, 0)
    image = canonical(png)
    assert image.data != png
    same(reader, {"png": image.data}, {"png": pillow_rgb(png)})


def test_pixels_of_every_depth_end_where_they_should() -> None:
    for depth, colour, channels in ((1, 0, 1), (2, 0, 1), (4, 0, 1), (8, 4, 2), (8, 6, 4), (16, 0, 1), (16, 2, 3)):
        for width in (1, 3, 8, 9):
            row = b"\0" + bytes((width * depth * channels + 7) // 8)
            canonical(_png(zlib.compress(row * 5), (width, 5), depth, colour, 0))
            with pytest.raises(FilmrollError, match="pixels end before the last row"):
                canonical(_png(zlib.compress((row * 5)[:-1]), (width, 5), depth, colour, 0))


def test_no_test_has_torchvision_in_its_own_process() -> None:
    assert not any(Path(path).name == "oracles" for path in __import__("sys").path)
