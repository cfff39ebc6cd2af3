"""Whatever happens to an image's file is found when it is read, before any decoder sees a byte of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageFile

from filmroll.errors import ImageDamagedError
from filmroll.image import ImageRef
from filmroll.pixels.decode import decode
from filmroll.store import Store, open_store
from filmroll.store.ingest.canonical import Canonical
from tests.store.conftest import Show
from tests.store.effort import effort
from tests.store.pictures import encode, noise

LARGE = {
    "PNG": encode(Image.fromarray(noise(300, 200, seed=1)), "PNG"),
    "JPEG": encode(Image.fromarray(noise(900, 700, seed=2)), "JPEG", quality=90),
    "WEBP": encode(Image.fromarray(noise(300, 200, seed=3)), "WEBP", quality=95),
}
SMALL = encode(Image.fromarray(np.zeros((1, 1), np.uint8)), "PNG")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Everything that any of Pillow's readers is given; all of filmroll's decoding goes through them."""
    given: list[object] = []
    real = ImageFile.ImageFile.__init__

    def spy(self: ImageFile.ImageFile, *args: object, **kwargs: object) -> None:
        given.append(args)
        real(self, *args, **kwargs)

    monkeypatch.setattr(ImageFile.ImageFile, "__init__", spy)
    return given


class Kept:
    """A stored image, its file, and the reader that develops it."""

    def __init__(self, folder: Path, data: bytes) -> None:
        self.store = open_store(folder)
        self.data = data
        self.ref: ImageRef = self.store.put(data)
        assert self.store.read(self.ref) == data
        self.file = folder / self.ref.sha256[:2] / Path(self.ref.uri).name
        self.aside = folder / "quarantine"

    def develop(self) -> np.ndarray:
        return decode(self.store.read(self.ref), max_pixels=1 << 26)

    @contextmanager
    def damaged(self) -> Iterator[None]:
        """Whatever is done to the file inside is found; what was set aside comes back and is whole again after."""
        yield
        with pytest.raises(ImageDamagedError, match=r"damaged.*set aside"):
            self.develop()
        assert not self.file.exists()
        (found,) = self.aside.iterdir()
        found.rename(self.file)

    def flip(self, place: int, bit: int) -> None:
        with self.file.open("r+b") as file:
            file.seek(place)
            file.write(bytes([self.data[place] ^ 1 << bit]))

    def mend(self, place: int) -> None:
        with self.file.open("r+b") as file:
            file.seek(place)
            file.write(self.data[place : place + 1])

    def is_whole(self) -> bool:
        return self.file.read_bytes() == self.data == self.store.read(self.ref)


def flipped(kept: Kept, places: Iterator[tuple[int, int]]) -> int:
    count = 0
    for place, bit in places:
        with kept.damaged():
            kept.flip(place, bit)
        kept.mend(place)
        count += 1
    assert kept.is_whole()
    return count


@pytest.mark.reliability
def test_every_bit_of_a_small_image(tmp_path: Path, decoded: list[object], show: Show) -> None:
    kept = Kept(tmp_path, SMALL)
    decoded.clear()
    bits = flipped(kept, ((place, bit) for place in range(len(SMALL)) for bit in range(8)))
    assert not decoded
    show("intact", "all found before decoding", bits_of_a_small_image=bits)


@pytest.mark.reliability
@pytest.mark.parametrize("format_", LARGE)
def test_bits_of_a_large_image(format_: str, tmp_path: Path, decoded: list[object], show: Show) -> None:
    kept, random = Kept(tmp_path, LARGE[format_]), Random(format_)
    decoded.clear()
    count = effort(200, 3_400)
    bits = flipped(kept, ((random.randrange(len(kept.data)), random.randrange(8)) for _ in range(count)))
    assert not decoded
    show("intact", "all found before decoding", flips=bits)


@pytest.mark.reliability
@pytest.mark.parametrize("format_", LARGE)
def test_cuts_of_a_large_image(format_: str, tmp_path: Path, decoded: list[object], show: Show) -> None:
    kept, random = Kept(tmp_path, LARGE[format_]), Random(format_)
    decoded.clear()
    cuts = [0, 1, 8, len(kept.data) - 1, *(random.randrange(len(kept.data)) for _ in range(effort(40, 1_000)))]
    for length in cuts:
        with kept.damaged():
            os.truncate(kept.file, length)
        kept.file.write_bytes(kept.data)
    assert kept.is_whole()
    assert not decoded
    show("intact", "all found before decoding", truncations=len(cuts))


def other_bytes() -> Iterator[tuple[str, Callable[[bytes, Random], bytes]]]:
    yield "two bytes swapped", lambda data, _: data[:100] + data[101:102] + data[100:101] + data[102:]
    yield "two blocks swapped", lambda data, _: data[:512] + data[1024:1536] + data[512:1024] + data[1536:]
    yield "a block of zeros", lambda data, _: data[:4096] + bytes(4096) + data[8192:]
    yield "all zeros", lambda data, _: bytes(len(data))
    yield "a byte appended", lambda data, _: data + b"\0"
    yield "appended to itself", lambda data, _: data * 2
    yield "a byte before it", lambda data, _: b"\0" + data[:-1]
    yield "noise", lambda data, random: random.randbytes(len(data))
    yield "the same picture written again", lambda data, _: _again(data)


def _again(data: bytes) -> bytes:
    """Another file that shows the very same pixels."""
    other = encode(Image.open(BytesIO(data)), "PNG", compress_level=0)
    assert other != data
    return other


@pytest.mark.parametrize("change", [make for _, make in other_bytes()], ids=[name for name, _ in other_bytes()])
def test_other_bytes(change: Callable[[bytes, Random], bytes], tmp_path: Path, decoded: list[object]) -> None:
    kept = Kept(tmp_path, LARGE["PNG"])
    other = change(kept.data, Random(1))
    decoded.clear()
    with kept.damaged():
        kept.file.write_bytes(other)
    kept.file.write_bytes(kept.data)
    assert kept.is_whole()
    assert not decoded


@pytest.mark.reliability
def test_images_under_each_others_names(tmp_path: Path, decoded: list[object], show: Show) -> None:
    """Same length, same kind, same size, a good image: only the name is another's."""
    store, count = open_store(tmp_path), effort(30, 1_000)
    pictures = [encode(Image.fromarray(noise(9, 9, seed=seed)), "PNG", compress_level=0) for seed in range(count)]
    refs = [store.put(data) for data in pictures]
    files = [tmp_path / ref.sha256[:2] / Path(ref.uri).name for ref in refs]
    assert len({len(data) for data in pictures}) == 1
    for file, data in zip(files, [*pictures[1:], pictures[0]], strict=True):
        file.write_bytes(data)
    decoded.clear()
    for ref in refs:
        with pytest.raises(ImageDamagedError):
            decode(store.read(ref), max_pixels=1 << 26)
    assert not decoded
    assert [store.put(data) for data in pictures] == refs
    assert [store.read(ref) for ref in refs] == pictures
    show("intact", "all found before decoding", swapped_names=count)


def test_a_damaged_image_is_found_by_who_has_read_it_before(tmp_path: Path) -> None:
    """Nothing that a reader remembers stands in for looking."""
    kept = Kept(tmp_path, SMALL)
    kept.develop()
    with kept.damaged():
        kept.flip(40, 0)
    kept.mend(40)
    kept.develop()


def test_a_damaged_image_is_mended_by_putting_it_again(tmp_path: Path) -> None:
    for fresh in (False, True):
        kept = Kept(tmp_path / str(fresh), LARGE["WEBP"])
        kept.flip(1000, 3)
        store: Store = open_store(tmp_path / str(fresh)) if fresh else kept.store
        with pytest.raises(ImageDamagedError):
            store.read(kept.ref)
        assert store.put(kept.data) == kept.ref
        assert kept.is_whole()
        (aside,) = kept.aside.iterdir()
        assert aside.read_bytes() != kept.data


def test_the_hash_is_taken_of_the_very_buffer_that_is_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that gives other bytes the second time changes nothing, because there is no second time."""
    kept = Kept(tmp_path, SMALL)
    reads: list[int] = []
    real = os.read

    def once(fd: int, size: int) -> bytes:
        reads.append(size)
        return real(fd, size) if len(reads) == 1 else b"other bytes".ljust(size)

    monkeypatch.setattr(os, "read", once)
    assert kept.store.read(kept.ref) == kept.data
    assert len(reads) == 1


def test_a_writer_that_is_wrong_about_a_digest_fools_no_reader(tmp_path: Path) -> None:
    ref = open_store(tmp_path).write(Canonical(SMALL, "ab" * 32, "image/png", 1, 1))
    with pytest.raises(ImageDamagedError):
        open_store(tmp_path).read(ref)
