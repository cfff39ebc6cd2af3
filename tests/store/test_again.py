"""Many images at once, and the same image again: in order, nothing lost, nothing decoded or encoded twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from filmroll.errors import FilmrollError, ImageFormatError, ImageLimitError, ImageSourceError, StoreUnavailableError
from filmroll.store import Limits, Store, open_store
from filmroll.store.ingest import canonical as ingest
from filmroll.store.ingest.canonical import Canonical, canonical
from filmroll.store.recent import Recent
from filmroll.store.together import THREADS
from tests.store.pictures import encode, noise, pillow_rgb

FRAME = noise(40, 30, seed=41)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Image.Image]:
    """Every picture that is encoded, in a process that remembers none."""
    pictures: list[Image.Image] = []
    real = ingest.encode_png

    def spy(picture: Image.Image) -> bytes:
        pictures.append(picture)
        return real(picture)

    monkeypatch.setattr(ingest, "encode_png", spy)
    monkeypatch.setattr(ingest, "_made", Recent[Canonical](1 << 20, weigh=lambda image: len(image.data)))
    return pictures


class Slow:
    """An array that is there once `ready` says so."""

    def __init__(self, ready: Callable[[], Any], seed: int = 0) -> None:
        self.ready, self.seed = ready, seed

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        self.ready()
        return noise(8, 8, seed=self.seed)


# Many at once


def test_references_come_in_the_order_of_their_images(store: Store) -> None:
    last = threading.Event()
    sources = [Slow(lambda: last.wait(20), 0), Slow(last.set, 1), *(noise(8, 8, seed=seed) for seed in range(2, 40))]
    refs = store.put_many(source for source in sources)
    assert [store.read(ref) for ref in refs] == [canonical(noise(8, 8, seed=seed)).data for seed in range(40)]
    assert store.put_many([]) == []


def test_a_few_are_put_at_a_time_and_no_more(store: Store) -> None:
    together, now, most, lock = threading.Barrier(THREADS), 0, 0, threading.Lock()

    def meet() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait(20)
        with lock:
            now -= 1

    store.put_many([Slow(meet, seed) for seed in range(4 * THREADS)])
    assert most == THREADS


def test_the_first_error_names_its_image_and_all_others_are_put(store: Store) -> None:
    good = [noise(8, 8, seed=seed) for seed in range(40)]
    bad: dict[int, tuple[Any, type[FilmrollError]]] = {
        7: (b"nothing", ImageFormatError),
        3: ("/no/such/file", ImageSourceError),
        30: (np.zeros((1, 70_000), np.uint8), ImageLimitError),
    }
    sources = [bad[at][0] if at in bad else good[at] for at in range(40)]
    with pytest.raises(ImageSourceError) as caught:
        store.put_many(sources)
    assert caught.value.index == 3
    assert caught.value.wire()["index"] == 3
    assert "no/such" in str(caught.value)
    assert "no/such" not in str(caught.value.wire())
    for at, source in enumerate(good):
        image = canonical(source)
        kept = store.shelf.root / image.sha256[:2] / f"{image.sha256}.png"  # type: ignore[attr-defined]
        assert kept.exists() == (at not in bad)


def test_a_failing_store_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"a file")
    with pytest.raises(StoreUnavailableError) as caught:
        open_store(tmp_path / "store").put_many([FRAME])
    assert caught.value.index == 0


def test_an_event_loop_stays_free(store: Store) -> None:
    """Each image waits for a tick of the loop that puts it."""

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def ticks() -> None:
            ticked = threading.Event()
            loop.call_soon_threadsafe(ticked.set)
            assert ticked.wait(20), "the loop is blocked"

        refs = await store.aput_many(Slow(ticks, seed) for seed in range(2 * THREADS))
        assert await store.aput(Slow(ticks, 1)) == refs[1]
        assert await store.aread(refs[1]) == canonical(noise(8, 8, seed=1)).data

    asyncio.run(run())


# The same again


def twice() -> Iterator[tuple[str, Callable[[], Any]]]:
    rgba = np.dstack([FRAME, FRAME[:, :, 0]])
    turned = encode(Image.fromarray(FRAME), "PNG", orientation=6)
    yield "array", FRAME.copy
    yield "grey array", FRAME[:, :, 0].copy
    yield "array with alpha", rgba.copy
    yield "16 bits", lambda: FRAME.astype(np.uint16) << 8
    yield "strided", lambda: np.repeat(FRAME, 2, axis=1)[:, ::2]
    yield "Pillow", lambda: Image.fromarray(FRAME)
    yield "Pillow with alpha", lambda: Image.fromarray(rgba)
    yield "PNG with alpha", lambda: encode(Image.fromarray(rgba), "PNG")
    yield "PNG turned", lambda: turned
    yield "GIF", lambda: encode(Image.fromarray(FRAME), "GIF")
    yield "BMP", lambda: encode(Image.fromarray(FRAME), "BMP")


@pytest.mark.parametrize("source", [make for _, make in twice()], ids=[name for name, _ in twice()])
def test_a_frame_that_comes_again_is_not_encoded_again(
    source: Callable[[], Any], store: Store, encoded: list[Image.Image]
) -> None:
    first = store.put(source())
    assert len(encoded) == 1
    assert store.put(source()) == first
    assert len(encoded) == 1


def test_a_frame_is_the_same_from_wherever_it_comes(encoded: list[Image.Image]) -> None:
    import torch

    sources = (FRAME, torch.from_numpy(FRAME), Image.fromarray(FRAME), FRAME.astype(np.uint16) << 8)
    assert len({canonical(source) for source in sources}) == 1
    assert len(encoded) == 1


def test_a_known_file_with_alpha_is_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.fromarray(noise(30, 20, 4, seed=99)), "PNG")
    first = canonical(data)
    monkeypatch.setattr(ingest, "open_image", None)
    assert canonical(data) == first


def test_the_same_memory_in_another_shape_is_another_picture(encoded: list[Image.Image]) -> None:
    flat = noise(36, 1, 1, seed=3)
    shapes = [(6, 6), (4, 9), (9, 4), (3, 4, 3), (4, 3, 3), (1, 36), (36, 1), (3, 3, 4)]
    for shape in shapes:
        array = flat.reshape(shape)
        image = canonical(array)
        assert (image.height, image.width) == array.shape[:2]
    assert len(encoded) == len(shapes)


def test_bytes_that_spell_a_known_picture_are_no_picture(encoded: list[Image.Image]) -> None:
    canonical(FRAME)
    for data in (FRAME.tobytes(), f"{FRAME.shape} ".encode() + FRAME.tobytes()):
        with pytest.raises(ImageFormatError):
            canonical(data)


@pytest.mark.parametrize("frame", [FRAME, FRAME[:, :, 0], FRAME.astype(np.uint16) << 8], ids=["RGB", "grey", "16 bits"])
@pytest.mark.parametrize("step", ["from_samples", "encode_png"])
def test_a_frame_drawn_over_while_it_is_put_is_one_or_the_other(
    frame: np.ndarray, step: str, encoded: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment draws its next frame into the same memory: what is remembered must be what was encoded."""
    screen, real = frame.copy(), getattr(ingest, step)

    def draw_over(given: Any) -> Any:
        screen[:] = 0
        return real(given)

    monkeypatch.setattr(ingest, step, draw_over)
    canonical(screen)
    monkeypatch.setattr(ingest, step, real)
    for picture in (frame, np.zeros_like(frame)):
        levels = picture >> 8 if picture.dtype == np.uint16 else picture
        np.testing.assert_array_equal(pillow_rgb(canonical(picture).data)[:, :, 0], levels.reshape(30, 40, -1)[:, :, 0])


@pytest.mark.parametrize("kind", ["array", "BMP"])
def test_limits_hold_for_a_remembered_frame(kind: str, encoded: list[Image.Image]) -> None:
    source = FRAME if kind == "array" else encode(Image.fromarray(FRAME), kind)
    image = canonical(source)
    for limits in (Limits(max_side=39), Limits(max_pixels=1199), Limits(max_bytes=len(image.data) - 1)):
        with pytest.raises(ImageLimitError):
            canonical(source, limits)
    assert canonical(source, Limits(max_side=40, max_pixels=1200, max_bytes=len(image.data) * 2)) == image


def test_a_frame_too_large_for_a_store_is_no_secret_to_the_next_one(encoded: list[Image.Image]) -> None:
    with pytest.raises(ImageLimitError):
        canonical(FRAME, Limits(max_bytes=100))
    assert len(canonical(FRAME).data) > 100


def test_a_remembered_frame_is_written_again_if_it_is_gone(store: Store) -> None:
    ref = store.put(FRAME)
    store.shelf.delete(f"{ref.sha256[:2]}/{ref.sha256}.png")
    assert store.put(FRAME) == ref
    assert store.read(ref) == canonical(FRAME).data


def test_what_is_remembered_is_bounded_by_its_weight() -> None:
    recent: Recent[bytes] = Recent(100, weigh=len)
    for number in range(50):
        recent.add(str(number), bytes(30))
    assert [key for key in map(str, range(50)) if key in recent] == ["47", "48", "49"]
    recent.add("49", bytes(50))
    assert [key for key in map(str, range(50)) if key in recent] == ["48", "49"]
    recent.add("large", bytes(101))
    assert "large" not in recent
    recent.add("small", bytes(100))
    assert recent.get("small") == bytes(100)


def test_frames_are_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Recent[Canonical](ingest._made._capacity, ingest._made._weigh)
    monkeypatch.setattr(ingest, "_made", made)
    monkeypatch.setattr(ingest, "_proved", Recent(1))
    monkeypatch.setattr(ingest, "encode_png", lambda _: bytes(5 << 20))
    for seed in range(12):
        canonical(noise(7, 5, seed=seed))
    assert 6 <= len(made._values) <= (32 << 20) // (5 << 20)
