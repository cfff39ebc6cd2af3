"""From descriptors to arrays: every claim is checked, every image decoded once, everything counted."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filmroll.errors import (
    FilmrollError,
    FingerprintError,
    GridError,
    ImageDamagedError,
    ImageFormatError,
    ImageLimitError,
    ImageNotFoundError,
    LayoutError,
    OutsideStoreError,
    PlacementError,
    ReceiptError,
    UnknownFamilyError,
)
from filmroll.families.qwen_vl import QwenVL
from filmroll.image import ImageRef
from filmroll.materialize import Materialized, Materializer, Receipt, materializer
from filmroll.pixels.decode import decode, decoding
from filmroll.store.ingest.canonical import Canonical, Limits
from filmroll.wire.descriptor import ImageDescriptor

Put = Callable[..., ImageRef]
Change = Callable[[ImageDescriptor], ImageDescriptor]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every image that is decoded."""
    seen: list[int] = []

    def counting(data: bytes, *, max_pixels: int) -> Any:
        seen.append(hash(data))
        return decoding(data, max_pixels=max_pixels)

    monkeypatch.setattr(materializer, "decoding", counting)
    return seen


def test_arrays_are_those_of_one_call(store: Any, family: QwenVL, put: Put) -> None:
    refs = [put(1), put(2, 100, 40), put(1), put(3, 32, 32)]
    loaded = Materializer(store, family).load([family.describe(ref) for ref in refs])
    expected = family.pixels([decode(store.read(ref), max_pixels=10**6) for ref in refs])
    assert_same(loaded, expected)
    assert loaded.receipt == Receipt(referenced=4, verified=4, decoded=4, consumed=0)


def test_no_descriptors_are_no_arrays(store: Any, family: QwenVL) -> None:
    assert Materializer(store, family).load([]) == Materialized((), Receipt(), family)


def test_what_a_caller_does_to_its_arrays_reaches_nobody_else(store: Any, family: QwenVL, put: Put) -> None:
    loader, descriptor = Materializer(store, family), family.describe(put(1))
    first = loader.load([descriptor])
    expected = {name: array.copy() for name, array in first.arrays.items()}
    for array in first.arrays.values():
        array[...] = 0
    assert_same(loader.load([descriptor]), expected)
    (held,) = loader._cache._items.values()
    assert not any(array.flags.writeable for array in held.arrays.values())


# Forgeries: what a descriptor may not claim, and the error of each.


def change(**fields: Any) -> Change:
    return lambda descriptor: msgspec.structs.replace(descriptor, **fields)


def change_image(**fields: Any) -> Change:
    def changed(descriptor: ImageDescriptor) -> ImageDescriptor:
        return msgspec.structs.replace(descriptor, image=msgspec.structs.replace(descriptor.image, **fields))

    return changed


FORGERIES: dict[str, tuple[Change, type[FilmrollError], str]] = {
    "family": (change(family="kimi_k25"), UnknownFamilyError, "family"),
    "modality": (change(modality="video"), FingerprintError, "modality"),
    "modality for vLLM": (change(vllm_modality="vision_chunk"), FingerprintError, "modality for vLLM"),
    "fingerprint": (change(layout_fingerprint="0" * 32), FingerprintError, "layout fingerprint"),
    "recipe": (change(recipe="0" * 32), FingerprintError, "pixel recipe"),
    "digest": (change_image(sha256="0" * 64), OutsideStoreError, "place"),
    "place": (change_image(uri="file:///etc/hostname.png"), OutsideStoreError, "place"),
    "type": (change_image(media_type="image/jpeg"), OutsideStoreError, "place"),
    "length": (change_image(nbytes=7), ImageDamagedError, "bytes"),
    "width": (change_image(width=65), GridError, "65x32"),
    "turned": (change_image(width=32, height=64), GridError, "32x64"),
    "grid": (change(payload={"image_grid_thw": [[1, 2, 2]]}), GridError, "payload"),
    "turned grid": (change(payload={"image_grid_thw": [[1, 4, 2]]}), GridError, "payload"),
    "two grids": (change(payload={"image_grid_thw": [[1, 2, 4]], "more": [[1, 1, 1]]}), GridError, "payload"),
    "no grid": (change(payload={}), GridError, "payload"),
    "tokens": (change(tokens=3), PlacementError, "3 tokens"),
}


@pytest.mark.parametrize("seen_before", [False, True], ids=["first", "cached"])
@pytest.mark.parametrize(("forge", "error", "said"), FORGERIES.values(), ids=FORGERIES)
def test_each_forgery_has_its_own_error(
    store: Any, family: QwenVL, put: Put, forge: Change, error: type[FilmrollError], said: str, seen_before: bool
) -> None:
    """Knowing an image's digest buys nothing: a cached image's claims are checked like a new one's."""
    honest, other = family.describe(put(1)), family.describe(put(2))
    loader = Materializer(store, family)
    if seen_before:
        loader.load([honest])
    with pytest.raises(FilmrollError) as caught:
        loader.load([other, honest, forge(honest)] if seen_before else [other, forge(honest)])
    assert type(caught.value) is error
    assert caught.value.index == (2 if seen_before else 1)
    assert said in caught.value.problem
    assert caught.value.remedy
    assert str(store.root) not in str(caught.value.wire())
    assert_same(loader.load([honest]), family.pixels([decode(store.read(honest.image), max_pixels=10**6)]))


@pytest.mark.parametrize(("forge", "error", "said"), FORGERIES.values(), ids=FORGERIES)
def test_what_was_seen_is_recalled_without_its_pixels(
    store: Any,
    family: QwenVL,
    put: Put,
    decoded: list[int],
    forge: Change,
    error: type[FilmrollError],
    said: str,
) -> None:
    honest = family.describe(put(1))
    loader = Materializer(store, family, cache_bytes=0)
    assert not loader.recall(honest)
    loader.load([honest])
    decoded.clear()
    assert loader.recall(honest)
    forged = forge(honest)
    if forged.family == honest.family and forged.identity[0] != honest.identity[0]:
        assert not loader.recall(forged)
    else:
        with pytest.raises(error, match=said):
            loader.recall(forged)
    assert not decoded


def test_claims_are_checked_in_order(store: Any, family: QwenVL, put: Put) -> None:
    """All forged at once, then mended one by one, each time the next check speaks; no byte is read before its turn."""
    loader, honest = Materializer(store, family), family.describe(put(1))
    order = ["family", "modality", "fingerprint", "recipe", "place", "width", "grid", "tokens"]
    for position, name in enumerate(order):
        forged = honest
        for later in order[position:]:
            forged = FORGERIES[later][0](forged)
        with pytest.raises(FORGERIES[name][1], match=FORGERIES[name][2]):
            loader.load([forged])
        assert bool(store.reads) == (position >= order.index("place"))


def test_the_same_image_by_another_reference_is_the_stores_to_judge(store: Any, family: QwenVL, put: Put) -> None:
    loader, honest = Materializer(store, family), family.describe(put(1))
    loader.load([honest, honest])
    assert len(store.reads) == 1
    with pytest.raises(OutsideStoreError):
        loader.load([change_image(uri="file:///elsewhere.png")(honest)])


def test_damaged_and_missing_images_are_named(store: Any, family: QwenVL, put: Put) -> None:
    damaged, missing = family.describe(put(1)), family.describe(put(2))
    path = store.root / damaged.image.uri.split("/")[-2] / damaged.image.uri.split("/")[-1]
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    (store.root / missing.image.uri.split("/")[-2] / missing.image.uri.split("/")[-1]).unlink()
    loader = Materializer(store, family)
    for descriptor, error in [(damaged, ImageDamagedError), (missing, ImageNotFoundError)]:
        with pytest.raises(error) as caught:
            loader.load([family.describe(put(3)), descriptor])
        assert caught.value.index == 1


def test_stored_bytes_that_are_no_image_are_named(store: Any, family: QwenVL) -> None:
    data = b"\x89PNG\r\n\x1a\n but no further"
    ref = store.write(Canonical(data, hashlib.sha256(data).hexdigest(), "image/png", 64, 32))
    with pytest.raises(ImageFormatError) as caught:
        Materializer(store, family).load([family.describe(ref)])
    assert caught.value.index == 0


def test_the_stores_limits_hold_for_readers_too(store: Any, family: QwenVL, put: Put) -> None:
    descriptor = family.describe(put(1))
    reader = type(store)(store.root, Limits(max_pixels=64 * 32 - 1))
    with pytest.raises(ImageLimitError) as caught:
        Materializer(reader, family).load([descriptor])
    assert caught.value.index == 0


def test_an_image_that_the_processor_refuses_is_named(store: Any, family: QwenVL, put: Put) -> None:
    ref = put(1, 201, 1)
    forged = msgspec.structs.replace(family.describe(put(2)), image=ref)
    with pytest.raises(LayoutError) as caught:
        Materializer(store, family).load([forged])
    assert caught.value.index == 0


# Laws.


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=6))
def test_law_once(store: Any, family: QwenVL, put: Put, decoded: list[int], turns: list[list[int]]) -> None:
    """However many turns and duplicates refer to an image, it is read and decoded once."""
    descriptors = [family.describe(put(seed)) for seed in range(5)]
    loader = Materializer(store, family)
    decoded.clear()
    store.reads.clear()
    for turn in turns:
        loader.load([descriptors[number] for number in turn])
    distinct = {number for turn in turns for number in turn}
    assert len(decoded) == len(set(decoded)) == len(distinct)
    assert Counter(store.reads) == Counter(descriptors[number].image.sha256 for number in distinct)


def test_law_once_within_a_call_even_without_a_cache(store: Any, family: QwenVL, put: Put, decoded: list[int]) -> None:
    one, two = family.describe(put(1)), family.describe(put(2))
    loader = Materializer(store, family, cache_bytes=0)
    loader.load([one, two, one, one])
    assert len(decoded) == 2
    loader.load([one])
    assert len(decoded) == 3


def test_law_once_for_simultaneous_requests(
    store: Any, family: QwenVL, put: Put, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    everybody = threading.Barrier(6, timeout=10)
    descriptors = [family.describe(put(seed)) for seed in range(3)]
    loader = Materializer(store, family)

    def request(_: int) -> Materialized:
        everybody.wait()
        return loader.load(descriptors)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(request, range(6)))
    assert len(decoded) == 3
    for answer in answers[1:]:
        assert_same(answer, answers[0].arrays)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.integers(0, 3), max_size=6), forged=st.integers(0, 8))
def test_law_counted(store: Any, family: QwenVL, put: Put, numbers: list[int], forged: int) -> None:
    """Either everything that was referred to is verified and decoded, or the load fails and says which image."""
    descriptors = [family.describe(put(number)) for number in numbers]
    loader = Materializer(store, family)
    if forged < len(numbers):
        descriptors[forged] = msgspec.structs.replace(descriptors[forged], tokens=99)
        with pytest.raises(PlacementError) as caught:
            loader.load(descriptors)
        assert caught.value.index == forged
        return
    loaded = loader.load(descriptors)
    count = len(numbers)
    assert loaded.receipt == Receipt(referenced=count, verified=count, decoded=count)
    assert len(loaded.arrays.get("image_grid_thw", ())) == count
    assert (loaded.receipt + Receipt(consumed=count)).check("a test").consumed == count
    if count:
        with pytest.raises(ReceiptError, match=f"{count} images were referred to"):
            loaded.receipt.check("a test")


def test_the_cache_is_bounded(store: Any, family: QwenVL, put: Put) -> None:
    descriptors = [family.describe(put(seed)) for seed in range(5)]
    (picture,) = Materializer(store, family).load(descriptors[:1]).pictures
    one = sum(array.nbytes for array in picture.arrays.values())
    loader = Materializer(store, family, cache_bytes=3 * one)
    loader.load(descriptors)
    counts = loader.cache_counts()
    assert (counts.items, counts.nbytes, counts.evicted, counts.misses) == (3, 3 * one, 2, 5)


def test_what_is_kept_is_an_eighth_of_the_values(store: Any, family: QwenVL, put: Put) -> None:
    loader = Materializer(store, family)
    loaded = loader.load([family.describe(put(seed)) for seed in range(3)])
    values, grids = loaded.arrays["pixel_values"], loaded.arrays["image_grid_thw"]
    assert values.dtype == np.float32
    assert loader.cache_counts().nbytes == values.nbytes // 8 + grids.nbytes


def assert_same(loaded: Materialized, expected: dict[str, Any]) -> None:
    assert loaded.arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)


class Whole(QwenVL):
    """A family of somebody's own that hands on the picture itself."""

    def pixels(self, images: Sequence[Any], dtype: Any = "float32") -> Any:
        return {"pixel_values": images[0], "corner": images[0][:1, :1]}


def test_a_family_may_hand_on_the_picture_itself(store: Any, family: QwenVL, put: Put) -> None:
    own = Whole(family.settings, placeholders=family.placeholders)
    reader = Materializer(store, own, cache_bytes=1 << 30)
    images = [put(number, 64, 64) for number in range(3)]
    loaded = [reader.load([own.describe(image)]).pictures[0].arrays["pixel_values"] for image in images]
    for image, array in zip(images, loaded, strict=True):
        np.testing.assert_array_equal(array, decode(store.read(image), max_pixels=64 * 64))
