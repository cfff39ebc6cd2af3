"""What every store must do. A new backend is one line in BACKENDS."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from filmroll.errors import ImageDamagedError, ImageLimitError, ImageNotFoundError, OutsideStoreError
from filmroll.image import ImageRef
from filmroll.store import Limits, Store, open_store
from filmroll.store.ingest import canonical
from tests.store.pictures import encode, noise

BACKENDS: dict[str, Callable[[Path], Store]] = {"files": open_store}


@pytest.fixture(params=BACKENDS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Opens the same place each time, as another process would."""
    return lambda: BACKENDS[request.param](tmp_path / "store")


def test_what_was_put_is_read_anywhere(make: Callable[[], Store]) -> None:
    store = make()
    for seed, format_ in enumerate(("PNG", "JPEG", "WEBP", "GIF")):
        data = encode(Image.fromarray(noise(20, 10, seed=seed)), format_)
        expected = canonical(data)
        ref = store.put(data)
        assert (ref.sha256, ref.media_type, ref.width, ref.height, ref.nbytes) == (
            expected.sha256,
            expected.media_type,
            20,
            10,
            len(expected.data),
        )
        assert store.read(ref) == make().read(ref) == expected.data
        assert msgspec.json.decode(msgspec.json.encode(ref), type=ImageRef) == ref


def test_putting_again_gives_the_same_reference(make: Callable[[], Store]) -> None:
    one, two = make(), make()
    ref = one.put(noise(9, 9))
    assert one.put(noise(9, 9)) == two.put(noise(9, 9)) == ref
    assert one.put(one.read(ref)) == ref
    assert one.put_many([noise(9, 9), noise(9, 9, seed=1)])[0] == ref


def test_a_missing_image_is_not_found(make: Callable[[], Store], tmp_path: Path) -> None:
    ref = make().put(noise(9, 9))
    other = ref.sha256[::-1]
    with pytest.raises(ImageNotFoundError) as caught:
        make().read(msgspec.structs.replace(ref, sha256=other, uri=_moved(ref, other)))
    assert str(tmp_path) not in str(caught.value.wire())


def _moved(ref: ImageRef, digest: str) -> str:
    return ref.uri.replace(f"/{ref.sha256[:2]}/{ref.sha256}", f"/{digest[:2]}/{digest}")


def test_an_empty_place_holds_nothing(make: Callable[[], Store], tmp_path: Path) -> None:
    ref = make().put(noise(9, 9))
    away = tmp_path / "store"
    away.rename(tmp_path / "gone")
    with pytest.raises(ImageNotFoundError):
        make().read(ref)


def test_a_reference_is_a_claim_that_is_checked(make: Callable[[], Store]) -> None:
    ref = make().put(noise(9, 9))
    change = msgspec.structs.replace
    for forged, kind in (
        (change(ref, nbytes=ref.nbytes + 1), ImageDamagedError),
        (change(ref, sha256="0" * 64), OutsideStoreError),
        (change(ref, media_type="image/jpeg"), OutsideStoreError),
        (change(ref, media_type="text/html"), OutsideStoreError),
        (change(ref, sha256="../" * 21 + "x", uri="../x"), OutsideStoreError),
        (change(ref, sha256=ref.sha256.upper(), uri=ref.uri.upper()), OutsideStoreError),
        (change(ref, nbytes=1 << 31), ImageLimitError),
    ):
        with pytest.raises(kind):
            make().read(forged)


def test_limits_hold_on_the_way_in_and_out(make: Callable[[], Store]) -> None:
    store = make()
    ref = store.put(noise(9, 9))
    store.limits = Limits(max_bytes=ref.nbytes - 1)
    with pytest.raises(ImageLimitError):
        store.read(ref)
    with pytest.raises(ImageLimitError):
        store.put(noise(9, 9))


def test_many_threads_and_coroutines(make: Callable[[], Store]) -> None:
    store = make()
    with ThreadPoolExecutor(8) as pool:
        refs = list(pool.map(lambda seed: store.put(noise(12, 12, seed=seed % 3)), range(48)))
    assert len({ref.sha256 for ref in refs}) == 3

    async def both() -> bytes:
        return await store.aread(await store.aput(noise(12, 12, seed=0)))

    assert asyncio.run(both()) == store.read(refs[0])


def test_a_store_travels_to_another_process(make: Callable[[], Store]) -> None:
    store = make()
    ref = store.put(noise(9, 9))
    copy = pickle.loads(pickle.dumps(store))
    assert copy.read(ref) == store.read(ref)
    assert copy.limits == store.limits
