"""What every store must do. A new backend is one line in BACKENDS."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec
import pytest
from PIL import Image

from filmroll.errors import ImageDamagedError, ImageLimitError, ImageNotFoundError, OutsideStoreError
from filmroll.image import ImageRef
from filmroll.store import Lease, Limits, Manifest, Store, open_store
from filmroll.store.ingest.canonical import canonical
from filmroll.store.keys import LEASES, QUARANTINE, TRASH, object_key, object_name
from filmroll.store.shelves.shelf import Shelf
from filmroll.store.upkeep.gc import gc
from filmroll.store.upkeep.verify import verify
from tests.store.pictures import encode, noise
from tests.store.places import Place

BACKENDS: dict[str, Callable[[Place], Callable[[], Store]]] = {
    "files": lambda place: partial(open_store, place.folder),
    "memory": lambda place: partial(open_store, f"memory://{place.name}"),
    "moto": lambda place: partial(open_store, place.bucket("moto")),
    "moto and cache": lambda place: partial(open_store, place.bucket("moto"), cache=place.folder),
    "ceph": lambda place: partial(open_store, place.bucket("ceph")),
}
"""Each opens the same place whenever it is called, as another process would."""

Make = Callable[[], Store]


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.ceph if name == "ceph" else ()) for name in BACKENDS])
def make(request: pytest.FixtureRequest) -> Make:
    return BACKENDS[request.param](Place(request))


@pytest.fixture
def shelf(make: Make) -> Shelf:
    return make().shelf


def key_of(ref: ImageRef) -> str:
    return object_key(object_name(ref.sha256, ref.media_type))


def keys(shelf: Shelf, folder: str = "") -> list[str]:
    return sorted(item.key for item in shelf.items(folder))


def in_quarantine(shelf: Shelf) -> list[bytes]:
    return [shelf.read(key, 1 << 20) for key in keys(shelf, QUARANTINE)]


# The store


def test_what_was_put_is_read_anywhere(make: Make) -> None:
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


def test_putting_again_gives_the_same_reference(make: Make) -> None:
    one, two = make(), make()
    ref = one.put(noise(9, 9))
    assert one.put(noise(9, 9)) == two.put(noise(9, 9)) == ref
    assert one.put(one.read(ref)) == ref
    assert one.put_many([noise(9, 9), noise(9, 9, seed=1)])[0] == ref


def test_an_object_lies_where_its_uri_says_and_nowhere_else(make: Make) -> None:
    store = make()
    ref = store.put(noise(9, 9))
    assert keys(store.shelf) == [key_of(ref)]
    assert ref.uri == store.shelf.uri(key_of(ref))
    assert ref.uri.endswith(f"/{ref.sha256[:2]}/{ref.sha256}.png")


def test_a_missing_image_is_not_found(make: Make) -> None:
    ref = make().put(noise(9, 9))
    other = ref.sha256[::-1]
    with pytest.raises(ImageNotFoundError) as caught:
        make().read(msgspec.structs.replace(ref, sha256=other, uri=_moved(ref, other)))
    assert ref.uri.rpartition("/")[0].rpartition("/")[0] not in str(caught.value.wire())


def _moved(ref: ImageRef, digest: str) -> str:
    return ref.uri.replace(f"/{ref.sha256[:2]}/{ref.sha256}", f"/{digest[:2]}/{digest}")


def test_an_empty_place_holds_nothing(make: Make) -> None:
    store = make()
    assert keys(store.shelf) == []
    ref = store.put(noise(9, 9))
    store.shelf.delete(key_of(ref))
    with pytest.raises(ImageNotFoundError):
        make().read(ref)


def test_a_reference_is_a_claim_that_is_checked(make: Make) -> None:
    ref = make().put(noise(9, 9))
    change = msgspec.structs.replace
    for forged, kind in (
        (change(ref, nbytes=ref.nbytes + 1), ImageDamagedError),
        (change(ref, nbytes=ref.nbytes - 1), ImageDamagedError),
        (change(ref, sha256="0" * 64), OutsideStoreError),
        (change(ref, media_type="image/jpeg"), OutsideStoreError),
        (change(ref, media_type="text/html"), OutsideStoreError),
        (change(ref, sha256="../" * 21 + "x", uri="../x"), OutsideStoreError),
        (change(ref, sha256=ref.sha256.upper(), uri=ref.uri.upper()), OutsideStoreError),
        (change(ref, nbytes=1 << 31), ImageLimitError),
    ):
        with pytest.raises(kind):
            make().read(forged)
    # However wrong a reference is, the image that it means stays.
    assert make().read(ref)
    assert in_quarantine(make().shelf) == []


def test_limits_hold_on_the_way_in_and_out(make: Make) -> None:
    store = make()
    ref = store.put(noise(9, 9))
    store.limits = Limits(max_bytes=ref.nbytes - 1)
    with pytest.raises(ImageLimitError):
        store.read(ref)
    with pytest.raises(ImageLimitError):
        store.put(noise(9, 9))


def test_many_threads_and_coroutines(make: Make) -> None:
    store = make()
    with ThreadPoolExecutor(8) as pool:
        refs = list(pool.map(lambda seed: store.put(noise(12, 12, seed=seed % 3)), range(48)))
    assert len({ref.sha256 for ref in refs}) == 3

    async def both() -> bytes:
        return await store.aread(await store.aput(noise(12, 12, seed=0)))

    assert asyncio.run(both()) == store.read(refs[0])


def test_a_store_travels_to_another_process(make: Make) -> None:
    store = make()
    ref = store.put(noise(9, 9))
    copy = pickle.loads(pickle.dumps(store))
    assert copy.read(ref) == store.read(ref)
    assert copy.limits == store.limits
    assert copy.put(noise(9, 9)) == ref


def test_a_known_image_that_was_removed_is_written_again(make: Make) -> None:
    store = make()
    ref = store.put(noise(9, 9))
    store.shelf.delete(key_of(ref))
    assert store.put(noise(9, 9)) == ref
    assert make().read(ref)


@pytest.mark.parametrize("damage", ["flip", "short", "long", "empty"])
def test_damage_is_found_by_readers_kept_for_people_and_mended_by_the_next_writer(make: Make, damage: str) -> None:
    ref = make().put(noise(9, 9))
    good = make().read(ref)
    flipped = good[:50] + bytes([good[50] ^ 1]) + good[51:]
    bad = {"flip": flipped, "short": good[:-1], "long": good + b"x", "empty": b""}[damage]
    make().shelf.replace(key_of(ref), bad)
    fresh = _without_cache(make())
    with pytest.raises(ImageDamagedError):
        fresh.read(ref)
    assert in_quarantine(fresh.shelf) == [bad]
    with pytest.raises(ImageNotFoundError):
        fresh.read(ref)
    assert fresh.put(noise(9, 9)) == ref
    assert fresh.read(ref) == fresh.shelf.read(key_of(ref), ref.nbytes) == good
    assert in_quarantine(fresh.shelf) == [bad]


def _without_cache(store: Store) -> Store:
    return Store(store.shelf, store.limits)


def test_a_writer_mends_damage_that_nobody_has_read(make: Make) -> None:
    ref = make().put(noise(9, 9))
    make().shelf.replace(key_of(ref), b"damaged")
    assert make().put(noise(9, 9)) == ref
    assert make().shelf.read(key_of(ref), ref.nbytes) == make().read(ref)
    assert in_quarantine(make().shelf) == [b"damaged"]


def test_an_image_on_its_way_out_is_read_and_can_be_put_again(make: Make) -> None:
    store = make()
    ref = store.put(noise(9, 9))
    good = store.read(ref)
    store.shelf.move(key_of(ref), f"{TRASH}/{ref.sha256}.png")
    assert make().read(ref) == good
    assert keys(store.shelf) == [f"{TRASH}/{ref.sha256}.png"]
    assert store.put(noise(9, 9)) == ref
    assert key_of(ref) in keys(store.shelf)
    assert make().read(ref) == good


def test_an_old_image_is_made_fresh_by_putting_it_again_and_a_fresh_one_is_left_alone(make: Make) -> None:
    known, other = make(), make()
    ref = known.put(noise(9, 9))
    first = _modified(known.shelf, ref)
    _let_the_clock_move_on(known.shelf)
    for store in (known, other):
        store.put(noise(9, 9))
        assert _modified(known.shelf, ref) == first
    for store in (known, make()):
        store.grace = 0  # From now on every image is old.
        store.put(noise(9, 9))
        second = _modified(known.shelf, ref)
        assert second > first
        first = second
        _let_the_clock_move_on(known.shelf)
    assert make().read(ref)


def _modified(shelf: Shelf, ref: ImageRef) -> float:
    return shelf.stat(key_of(ref)).modified


def _let_the_clock_move_on(shelf: Shelf) -> None:
    """Some clocks tell whole seconds only."""
    start = shelf.now()
    while shelf.now() == start:
        time.sleep(0.05)


def test_upkeep_removes_what_nobody_needs_in_two_rounds_and_nothing_else(make: Make) -> None:
    store = make()
    refs = store.put_many(noise(9, 9, seed=seed) for seed in range(5))
    named, held, again, *unneeded = refs
    Manifest(store, "run").keep("step-1", [named])
    with Lease(store, "buffer") as lease:
        lease.hold([held])
        _let_the_clock_move_on(store.shelf)
        assert gc(make(), delete=True, grace=0).trashed.count == 3
        assert [make().read(ref) for ref in refs] == [canonical(noise(9, 9, seed=seed)).data for seed in range(5)]
        store.put(noise(9, 9, seed=2))
        _let_the_clock_move_on(store.shelf)
        Manifest(make(), "run").keep("step-2", [again])
        assert gc(make(), delete=True, grace=0).removed.count == 2
    for ref in (named, held, again):
        assert make().read(ref)
    for ref in unneeded:
        with pytest.raises(ImageNotFoundError):
            _without_cache(make()).read(ref)
    assert keys(store.shelf, TRASH) == keys(store.shelf, LEASES) == in_quarantine(store.shelf) == []
    found = verify(make())
    assert (found.images, found.damaged, found.foreign) == (3, [], [])


# The shelf


def test_a_key_is_created_once(shelf: Shelf) -> None:
    assert shelf.create("ab/one", b"first")
    assert not shelf.create("ab/one", b"second")
    assert not shelf.create("ab/one", b"first")
    assert shelf.read("ab/one", 5) == b"first"


def test_of_many_creators_one_wins(make: Make) -> None:
    shelves = [make().shelf for _ in range(4)]
    start = threading.Barrier(32)

    def create(number: int) -> bool:
        start.wait()
        return shelves[number % 4].create("ab/one", b"%d" % number)

    with ThreadPoolExecutor(32) as pool:
        won = list(pool.map(create, range(32)))
    assert won.count(True) == 1
    assert shelves[0].read("ab/one", 2) == b"%d" % won.index(True)


def test_replacing_shows_the_old_or_the_new(shelf: Shelf) -> None:
    texts = [bytes([number]) * (1 << 16) for number in range(12)]
    shelf.replace("ab/one", texts[0])
    over = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not over.is_set():
            seen.add(shelf.read("ab/one", 1 << 16))

    with ThreadPoolExecutor(2) as pool:
        reader = pool.submit(read)
        for text in texts[1:]:
            shelf.replace("ab/one", text)
        over.set()
        reader.result()
    assert seen <= set(texts)
    assert shelf.read("ab/one", 1 << 16) == texts[-1]


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 1000])
def test_bytes_come_back_as_they_were(shelf: Shelf, data: bytes) -> None:
    shelf.create("ab/one", data)
    shelf.settle("ab/one")
    assert shelf.read("ab/one", len(data)) == data
    item = shelf.stat("ab/one")
    assert (item.key, item.nbytes) == ("ab/one", len(data))
    assert [item.nbytes for item in shelf.items("ab")] == [len(data)]


def test_what_is_longer_than_expected_is_not_read(shelf: Shelf) -> None:
    shelf.create("ab/one", bytes(1000))
    with pytest.raises(ImageLimitError):
        shelf.read("ab/one", 999)


def test_a_free_key_has_nothing(shelf: Shelf) -> None:
    for taken in (False, True):
        for act in (
            lambda: shelf.read("ab/free", 10),
            lambda: shelf.copy("ab/free", "ab/other"),
            lambda: shelf.move("ab/free", "ab/other"),
        ):
            with pytest.raises(FileNotFoundError):
                act()
        assert shelf.stat("ab/free") is None
        assert not shelf.touch("ab/free")
        shelf.delete("ab/free")
        assert keys(shelf) == (["ab/near"] if taken else [])
        shelf.create("ab/near", b"x")  # The same again, now that the folder is there.


def test_everything_below_a_folder_is_listed(shelf: Shelf) -> None:
    manifests = [f"manifests/run/{number:02}" for number in range(12)]
    for key in (*manifests, "manifests/run-2/a", "ab/one", "abc/two"):
        shelf.create(key, key.encode())
    assert keys(shelf, "manifests/run") == manifests
    assert keys(shelf, "manifests") == sorted([*manifests, "manifests/run-2/a"])
    assert keys(shelf, "ab") == ["ab/one"]
    assert keys(shelf, "a") == keys(shelf, "nothing") == []
    assert keys(shelf) == sorted([*manifests, "manifests/run-2/a", "ab/one", "abc/two"])
    for item in shelf.items():
        assert item.nbytes == len(item.key)
        assert abs(item.modified - shelf.stat(item.key).modified) < 1


def test_what_is_listed_may_be_removed_meanwhile(shelf: Shelf) -> None:
    for number in range(12):
        shelf.create(f"ab/{number:02}", b"")
    for item in shelf.items("ab"):
        shelf.delete(item.key)
    assert keys(shelf) == []


def test_touching_changes_the_time_alone(shelf: Shelf) -> None:
    shelf.create("ab/one", b"text")
    before = shelf.stat("ab/one")
    _let_the_clock_move_on(shelf)
    assert shelf.touch("ab/one")
    after = shelf.stat("ab/one")
    assert after.modified > before.modified
    assert (after.key, after.nbytes) == (before.key, before.nbytes)
    assert shelf.read("ab/one", 4) == b"text"


def test_a_copy_leaves_alone_what_it_finds(shelf: Shelf) -> None:
    shelf.create("ab/one", b"one")
    assert shelf.copy("ab/one", "cd/two")
    assert shelf.read("cd/two", 3) == shelf.read("ab/one", 3) == b"one"
    shelf.create("ab/three", b"three")
    assert not shelf.copy("ab/three", "cd/two")
    assert shelf.read("cd/two", 3) == b"one"


def test_a_move_frees_the_key_and_takes_the_other(shelf: Shelf) -> None:
    shelf.create("ab/one", b"one")
    modified = shelf.stat("ab/one").modified
    shelf.create("trash/two", b"two")
    moved = shelf.move("ab/one", "trash/two")
    assert (moved.key, moved.nbytes) == ("trash/two", 3)
    assert abs(moved.modified - modified) < 1
    assert keys(shelf) == ["trash/two"]
    assert shelf.read("trash/two", 3) == b"one"


def test_a_key_is_freed_once(shelf: Shelf) -> None:
    shelf.create("ab/one", b"one")
    shelf.delete("ab/one")
    shelf.delete("ab/one")
    assert shelf.stat("ab/one") is None
    assert shelf.create("ab/one", b"two")


def test_the_clock_is_the_one_that_objects_are_told_by(shelf: Shelf) -> None:
    before = shelf.now()
    shelf.create("ab/one", b"one")
    assert before <= shelf.stat("ab/one").modified <= shelf.now()
    assert keys(shelf) == ["ab/one"]


def test_a_shelf_travels_to_another_process(shelf: Shelf) -> None:
    shelf.create("ab/one", b"one")
    copy = pickle.loads(pickle.dumps(shelf))
    assert copy.read("ab/one", 3) == b"one"
    assert copy.uri("ab/one") == shelf.uri("ab/one")
