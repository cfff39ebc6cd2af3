"""No two pictures have one identity: of everything that the same memory can mean, equal digests show equal pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from filmroll.pixels.decode import decode
from filmroll.store.ingest.canonical import canonical
from tests.store.conftest import Show
from tests.store.effort import effort
from tests.store.pictures import ORIENTATION, ORIENTED, encode, seen, seen_in

MEMORY = st.one_of(
    st.integers(1, 12).flatmap(lambda size: st.binary(min_size=2 * size, max_size=2 * size)),
    st.integers(1, 24)
    .flatmap(lambda size: st.lists(st.sampled_from([0, 1, 127, 255]), min_size=2 * size, max_size=2 * size))
    .map(bytes),
)
"""A few bytes, often of a few values, so that different pictures have much in common."""

Pixels = np.ndarray[Any, Any]
Meaning = tuple[str, Any, Pixels]
"""What it is, a source, and what a reader must see: [height, width, 3]."""


def shapes(size: int) -> Iterator[tuple[int, ...]]:
    for channels in (1, 3, 4):
        for height in range(1, size // channels + 1):
            if size % (channels * height) == 0:
                yield (height, size // channels // height, channels)


def arrays(memory: bytes) -> Iterator[Meaning]:
    flat = np.frombuffer(memory, np.uint8)
    for shape in shapes(len(flat)):
        array = flat.reshape(shape)
        plain = array[:, :, 0] if shape[2] == 1 else array
        for name, one in (("", array), (" transposed", array.transpose(1, 0, 2)), (" mirrored", array[:, ::-1])):
            yield f"array {shape}{name}", one, seen_in(_image(one))
        yield f"array {plain.shape} alone", plain.copy(), seen_in(_image(array))
    wide = np.frombuffer(memory, np.uint16)
    for shape in shapes(len(wide)):
        array = wide.reshape(shape)
        yield f"16 bits {shape}", array, seen_in(_image((array >> 8).astype(np.uint8)))


def _image(array: Pixels) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array))


def images(memory: bytes, orientation: int) -> Iterator[tuple[str, Image.Image]]:
    """Pillow's pictures of the memory, in every mode that it fits; the same samples with other palettes and keys."""
    for mode, channels in (("L", 1), ("P", 1), ("LA", 2), ("RGB", 3), ("YCbCr", 3), ("RGBA", 4), ("CMYK", 4)):
        if len(memory) % channels:
            continue
        size = (len(memory) // channels, 1)
        image = Image.frombytes(mode, size, memory)
        if mode == "P":
            for name, palette in (("grey", bytes(range(256)) * 3), ("turned", memory * 256), ("none", bytes(768))):
                image = Image.frombytes(mode, size, memory)
                image.putpalette(palette[:768])
                yield f"P {name}", image
                keyed = image.copy()
                keyed.info["transparency"] = memory[0]
                yield f"P {name} with a key", keyed
            continue
        yield mode, image
        turned = image.copy()
        turned.getexif()[ORIENTATION] = orientation
        yield f"{mode} turned {orientation}", turned
        if mode in ("L", "RGB"):
            keyed = image.copy()
            keyed.info["transparency"] = image.getpixel((0, 0))
            yield f"{mode} with a key", keyed


FORMATS = {
    "PNG": ("L", "P", "LA", "RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P"),
    "BMP": ("L", "RGB"),
    "TIFF": ("L", "RGB", "CMYK"),
}


def files(name: str, image: Image.Image, orientation: int, trailing: bytes) -> Iterator[Meaning]:
    for format_, modes in FORMATS.items():
        if image.mode not in modes:
            continue
        options: dict[str, Any] = {"lossless": True, "exact": True} if format_ == "WEBP" else {}
        if "transparency" in image.info and format_ in ("PNG", "GIF"):
            options["transparency"] = image.info["transparency"]
        for turn in (None, orientation) if format_ in ORIENTED else (None,):
            data = encode(image, format_, orientation=turn, **options)
            yield f"{format_} of {name} {turn}", data, seen(data)
            if turn is None:
                yield f"{format_} of {name} and more", data + trailing, seen(data + trailing)


def meanings(memory: bytes, orientation: int, trailing: bytes) -> Iterator[Meaning]:
    yield from arrays(memory)
    for name, image in images(memory, orientation):
        yield name, image, seen_in(image)
        yield from files(name, image, orientation, trailing)


def test_collisions_are_looked_for_where_they_could_be() -> None:
    """The same memory means many different pictures, and some of them are the same."""
    found = list(meanings(bytes(range(24)), 6, b"more"))
    pictures = {(pixels.shape, pixels.tobytes()) for _, _, pixels in found}
    assert len(found) > 100
    assert 50 < len(pictures) < len(found)


@pytest.mark.reliability
def test_no_two_pictures_have_one_identity(show: Show) -> None:
    shown: dict[str, tuple[tuple[int, ...], bytes, str]] = {}
    pairs = pictures = 0

    @settings(max_examples=effort(25, 250), deadline=None, suppress_health_check=list(HealthCheck))
    @given(memory=MEMORY, orientation=st.integers(2, 8), trailing=st.binary(min_size=1, max_size=9))
    def check(memory: bytes, orientation: int, trailing: bytes) -> None:
        nonlocal pairs, pictures
        for before, (name, source, pixels) in enumerate(meanings(memory, orientation, trailing)):
            image = canonical(source)
            np.testing.assert_array_equal(decode(image.data, max_pixels=1 << 20), pixels, err_msg=name)
            first = shown.setdefault(image.sha256, (pixels.shape, pixels.tobytes(), name))
            assert first[:2] == (pixels.shape, pixels.tobytes()), (first[2], name)
            pairs += before
            pictures += 1

    check()
    assert pairs > effort(20_000, 1_000_000)
    show("collisions", "no identity with two pictures", pairs_of_the_same_memory=pairs, pictures=pictures)
