"""Stored images by url, where no vLLM is: read once, verified, never from elsewhere."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

from filmroll.engine.vllm.stored import StoredImages
from filmroll.errors import (
    FilmrollError,
    ImageDamagedError,
    ImageLimitError,
    ImageNotFoundError,
    OutsideStoreError,
    StoreUnavailableError,
)
from filmroll.image import ImageRef
from filmroll.materialize.watch import Watch
from filmroll.store import Limits, Store, open_store
from tests.store.servers.endpoint import BUCKET
from tests.store.servers.moto import started_moto


def noise(seed: int, side: int = 20) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def images(store: Store, cache_bytes: int = 1 << 20) -> StoredImages:
    return StoredImages(store, cache_bytes=cache_bytes, readers=4)


def path_of(ref: ImageRef) -> Path:
    return Path(unquote(urlsplit(ref.uri).path))


@pytest.fixture(params=["folder", "a folder's ünusual name", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    if request.param != "bucket":
        yield open_store(tmp_path / request.param)
        return
    with started_moto() as moto:
        for name, value in moto.environment.items():
            monkeypatch.setenv(name, value)
        yield open_store(f"s3://{BUCKET}/images", cache=tmp_path / "cache")


def test_an_image_is_the_one_that_was_put(store: Store) -> None:
    ref = store.put(noise(1))
    stored = images(store).read(ref.uri)
    assert hashlib.sha256(stored.data).hexdigest() == ref.sha256
    assert (stored.picture.mode, stored.picture.size) == ("RGB", (20, 20))
    np.testing.assert_array_equal(stored.picture, noise(1))


def test_only_what_is_below_the_store_is_its_own(store: Store) -> None:
    ref = store.put(noise(1))
    has = images(store).has_place_for
    root = ref.uri[: -len(f"{ref.sha256[:2]}/{ref.sha256}.png")]
    for inside in (ref.uri, f"{root}../../etc/passwd", f"{root}%2e%2e/etc/passwd.png"):
        assert has(inside)
    others = ("", None, 7, "file:///etc/hostname", "data:image/png;base64,AA==", "https://example.org/a.png")
    for outside in (*others, root[:-1], f"{root[:-1]}-other/{ref.sha256}.png"):
        assert not has(outside)


def test_nothing_but_images_is_read_there(store: Store, tmp_path: Path) -> None:
    ref = store.put(noise(1))
    root = ref.uri[: -len(f"{ref.sha256[:2]}/{ref.sha256}.png")]
    (tmp_path / "secret.png").write_bytes(b"secret")
    names = ("", "x.png", "../secret.png", "%2e%2e/secret.png", f"trash/{ref.sha256}.png", f"{ref.sha256[2:]}.png")
    for name in names:
        with pytest.raises((OutsideStoreError, ImageNotFoundError)) as caught:
            images(store).read(root + name)
        assert str(tmp_path) not in caught.value.wire()["message"]


def test_other_bytes_under_its_name_are_damage(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    one, other = store.put(noise(1)), store.put(noise(2))
    os.replace(path_of(other), path_of(one))  # noqa: PTH105
    with pytest.raises(ImageDamagedError):
        images(store).read(one.uri)


def test_what_is_missing_and_what_cannot_be_asked_differ(tmp_path: Path) -> None:
    store = open_store(tmp_path / "images")
    ref = store.put(noise(1))
    path_of(ref).unlink()
    with pytest.raises(ImageNotFoundError):
        images(store).read(ref.uri)
    (tmp_path / "images").rename(tmp_path / "aside")
    (tmp_path / "images").touch()
    with pytest.raises(StoreUnavailableError):
        images(store).read(ref.uri)


def test_files_of_other_systems_are_read_under_their_short_names(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    kept = path_of(store.put(noise(1)))
    foreign = tmp_path / f"{kept.stem[:16]}.png"
    kept.rename(foreign)
    np.testing.assert_array_equal(images(store).read(foreign.as_uri()).picture, noise(1))
    lying = tmp_path / f"{'0' * 16}.png"
    foreign.rename(lying)
    with pytest.raises(ImageDamagedError):
        images(store).read(lying.as_uri())


def test_limits_hold_for_what_others_have_put(tmp_path: Path) -> None:
    ref = open_store(tmp_path).put(noise(1))
    with pytest.raises(ImageLimitError):
        images(open_store(tmp_path, Limits(max_pixels=100))).read(ref.uri)
    with pytest.raises(FilmrollError):
        images(open_store(tmp_path, Limits(max_bytes=100))).read(ref.uri)


class Seen(Watch):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def found(self) -> None:
        self.told.append("found")

    def missed(self) -> None:
        self.told.append("missed")

    def read(self, nbytes: int, seconds: float) -> None:
        self.told.append(nbytes)

    def decoded(self, seconds: float) -> None:
        self.told.append("decoded")


def test_what_is_done_is_counted(tmp_path: Path) -> None:
    store, seen = open_store(tmp_path), Seen()
    ref = store.put(noise(1))
    held = StoredImages(store, cache_bytes=1 << 20, readers=1, watch=seen)
    held.read(ref.uri)
    held.read(ref.uri)
    assert seen.told == ["missed", ref.nbytes, "decoded", "found"]


class Counting(Store):
    """Counts what is read, and reads nothing before it may."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.shelf, store.limits)
        self.reads = 0
        self.may = threading.Event()

    def read_at(self, uri: str) -> bytes:
        self.reads += 1
        assert self.may.wait(60)
        return super().read_at(uri)


def test_an_image_is_read_once_however_many_want_it_at_once(tmp_path: Path) -> None:
    counting = Counting(open_store(tmp_path))
    uri = counting.put(noise(1)).uri
    held = images(counting)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(held.read, uri) for _ in range(8)]
        counting.may.set()
        assert len({id(one.result()) for one in asked}) == 1
    held.read(uri)
    assert counting.reads == 1


def test_what_does_not_fit_is_not_kept(tmp_path: Path) -> None:
    counting = Counting(open_store(tmp_path))
    counting.may.set()
    uris = [counting.put(noise(seed)).uri for seed in (1, 2)]
    size = images(counting).read(uris[0]).nbytes
    assert size > 20 * 20 * 4
    counting.reads = 0
    held = images(counting, cache_bytes=size + size // 2)
    for uri in (*uris, *uris):
        held.read(uri)
    assert counting.reads == 4


def test_the_event_loop_goes_on_meanwhile(tmp_path: Path) -> None:
    counting = Counting(open_store(tmp_path))
    uri = counting.put(noise(1)).uri

    async def ask() -> Image.Image:
        asked = asyncio.create_task(images(counting).aread(uri))
        await asyncio.sleep(0.05)
        counting.may.set()  # Only a loop that is not held up comes here.
        return (await asked).picture

    assert asyncio.run(asyncio.wait_for(ask(), 60)).size == (20, 20)
