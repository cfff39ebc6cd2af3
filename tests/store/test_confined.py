"""Law 8: a reader opens nothing outside its store's root, whatever it is told and whatever lies there."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from filmroll.errors import (
    FilmrollError,
    ImageDamagedError,
    ImageLimitError,
    ImageNotFoundError,
    OutsideStoreError,
)
from filmroll.image import ImageRef
from filmroll.store import Limits, open_store
from tests.store.pictures import noise

change = msgspec.structs.replace


class Place:
    """A store that holds one image, and a secret beside it with the very same bytes."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "store"
        self.ref = open_store(self.root).put(noise(9, 9))
        self.shard = self.root / self.ref.sha256[:2]
        self.object = self.shard / f"{self.ref.sha256}.png"
        self.outside = folder / "outside"
        self.outside.mkdir()
        self.secret = self.outside / self.object.name
        shutil.copy(self.object, self.secret)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The real paths of all that os.open really opened."""
    found: list[Path] = []
    real = os.open

    def spy(*args: Any, **kwargs: Any) -> int:
        fd = real(*args, **kwargs)
        found.append(Path(f"/proc/self/fd/{fd}").readlink())
        return fd

    monkeypatch.setattr(os, "open", spy)
    yield found


def symlinked_object(place: Place) -> ImageRef:
    place.object.unlink()
    place.object.symlink_to(place.secret)
    return place.ref


def symlinked_folder(place: Place) -> ImageRef:
    shutil.rmtree(place.shard)
    place.shard.symlink_to(place.outside)
    return place.ref


def dangling_symlink(place: Place) -> ImageRef:
    place.object.unlink()
    place.object.symlink_to(place.outside / "nothing")
    return place.ref


def fifo(place: Place) -> ImageRef:
    place.object.unlink()
    os.mkfifo(place.object)
    return place.ref


def device(place: Place) -> ImageRef:
    place.object.unlink()
    try:
        os.mknod(place.object, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero: it never ends.
    except PermissionError:
        pytest.skip("only root makes devices")
    return place.ref


def folder(place: Place) -> ImageRef:
    place.object.unlink()
    place.object.mkdir()
    return place.ref


def unix_socket(place: Place) -> ImageRef:
    place.object.unlink()
    here = Path.cwd()
    os.chdir(place.shard)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("s")
        Path("s").rename(place.object.name)
    finally:
        os.chdir(here)
    return place.ref


def file_for_folder(place: Place) -> ImageRef:
    shutil.rmtree(place.shard)
    place.shard.write_bytes(b"x")
    return place.ref


def sparse_file(place: Place) -> ImageRef:
    with place.object.open("r+b") as file:
        file.truncate(1 << 40)
    return place.ref


def uri_outside(place: Place) -> ImageRef:
    return change(place.ref, uri=place.secret.as_uri())


def dots(place: Place) -> ImageRef:
    return change(place.ref, uri=f"{place.root.as_uri()}/../outside/{place.object.name}")


def encoded_dots(place: Place) -> ImageRef:
    return change(place.ref, uri=f"{place.root.as_uri()}/%2e%2e/outside/{place.object.name}")


def respelled(place: Place) -> ImageRef:
    return change(place.ref, uri=place.ref.uri.replace("file://", "file://localhost"))


def doubled_slash(place: Place) -> ImageRef:
    return change(place.ref, uri=place.ref.uri.replace("/store/", "/store//"))


def plain_path(place: Place) -> ImageRef:
    return change(place.ref, uri=str(place.object))


def network(place: Place) -> ImageRef:
    return change(place.ref, uri=f"http://localhost/{place.object.name}")


def wrong_digest(place: Place) -> ImageRef:
    return change(place.ref, sha256="0" * 64)


def short_digest(place: Place) -> ImageRef:
    return change(place.ref, sha256=place.ref.sha256[:16])


def digest_of_dots(place: Place) -> ImageRef:
    return change(place.ref, sha256="../outside/" + place.ref.sha256[11:])


def digest_with_newline(place: Place) -> ImageRef:
    return change(place.ref, sha256=place.ref.sha256 + "\n", uri=place.ref.uri.replace(".png", "%0A.png"))


def other_stores(place: Place) -> ImageRef:
    return open_store(place.outside / "store").put(noise(9, 9))


def temporary_file(place: Place) -> ImageRef:
    (place.root / "tmp" / place.object.name).write_bytes(place.object.read_bytes())
    return change(place.ref, uri=(place.root / "tmp" / place.object.name).as_uri())


def missing(place: Place) -> ImageRef:
    place.object.unlink()
    return place.ref


def too_large(place: Place) -> ImageRef:
    return change(place.ref, nbytes=(64 << 20) + 1)


ATTACKS: dict[Callable[[Place], ImageRef], type[FilmrollError]] = {
    symlinked_object: ImageDamagedError,
    symlinked_folder: ImageDamagedError,
    dangling_symlink: ImageDamagedError,
    fifo: ImageDamagedError,
    device: ImageDamagedError,
    folder: ImageDamagedError,
    unix_socket: ImageDamagedError,
    file_for_folder: ImageDamagedError,
    sparse_file: ImageDamagedError,
    uri_outside: OutsideStoreError,
    dots: OutsideStoreError,
    encoded_dots: OutsideStoreError,
    respelled: OutsideStoreError,
    doubled_slash: OutsideStoreError,
    plain_path: OutsideStoreError,
    network: OutsideStoreError,
    wrong_digest: OutsideStoreError,
    short_digest: OutsideStoreError,
    digest_of_dots: OutsideStoreError,
    digest_with_newline: OutsideStoreError,
    other_stores: OutsideStoreError,
    temporary_file: OutsideStoreError,
    missing: ImageNotFoundError,
    too_large: ImageLimitError,
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_law_confined(attack: Callable[[Place], ImageRef], place: Place, opened: list[Path], tmp_path: Path) -> None:
    ref = attack(place)
    store = open_store(place.root)
    opened.clear()
    start = time.monotonic()
    with pytest.raises(FilmrollError) as caught:
        store.read(ref)
    assert time.monotonic() - start < 1
    assert type(caught.value) is ATTACKS[attack]
    if attack in (fifo, device, folder):
        assert "no regular file" in caught.value.problem
    assert str(tmp_path) not in str(caught.value.wire())
    assert all(path == place.root or place.root in path.parents for path in opened)
    if ATTACKS[attack] in (OutsideStoreError, ImageLimitError):
        assert not opened


def test_an_image_is_read_through_its_own_root_alone(place: Place, opened: list[Path]) -> None:
    assert open_store(place.root).read(place.ref) == place.secret.read_bytes()
    assert opened == [place.shard, place.object]


def test_a_writer_does_not_follow_a_symlinked_folder_out(place: Place, opened: list[Path]) -> None:
    symlinked_folder(place)
    with pytest.raises(ImageDamagedError):
        open_store(place.root).put(noise(9, 9))
    assert not any(place.outside in path.parents for path in opened)
    assert list(place.outside.iterdir()) == [place.secret]


def test_a_larger_file_than_the_limit_is_not_read(place: Place) -> None:
    with pytest.raises(ImageLimitError):
        open_store(place.root, Limits(max_bytes=10)).read(place.ref)
