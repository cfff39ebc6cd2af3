"""Manifests and leases: what is referred to is there, stays there, and is read strictly or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmroll.errors import ConfigError, ImageNotFoundError, ManifestError
from filmroll.image import ImageRef
from filmroll.store import Store, open_store
from filmroll.store.keys import LEASES, MANIFESTS, TRASH, object_key, object_name
from filmroll.store.upkeep.leases import MAX_SECONDS, Held, Lease, every_lease
from filmroll.store.upkeep.manifests import Manifest, every_label, read_label, read_names, write_names
from tests.store.pictures import noise

DAY = 86_400


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def name(ref: ImageRef) -> str:
    return object_name(ref.sha256, ref.media_type)


def names(*refs: ImageRef) -> frozenset[str]:
    return frozenset(map(name, refs))


def age(store: Store, key: str, seconds: float) -> None:
    path = store.shelf.root / key
    then = time.time() - seconds
    os.utime(path, (then, then))


def put(store: Store, count: int, first: int = 0) -> list[ImageRef]:
    return [store.put(noise(5, 5, seed=seed)) for seed in range(first, first + count)]


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Manifests


def test_a_manifest_names_what_it_keeps(store: Store) -> None:
    one, two, three = put(store, 3)
    manifest = Manifest(store, "run-1")
    assert manifest.labels() == []
    manifest.keep("step_2", [three, three])
    manifest.keep("step_1", [two, one])
    manifest.keep("text_only", [])
    again = Manifest(open_store(store.shelf.root), "run-1")
    assert again.labels() == ["step_1", "step_2", "text_only"]
    assert again.images("step_1") == names(one, two)
    assert again.images("text_only") == again.images("unknown") == frozenset()
    assert again.images() == names(one, two, three)
    assert Manifest(store, "run-2").labels() == []


def test_its_text_is_the_documented_one(store: Store) -> None:
    refs = put(store, 2)
    Manifest(store, "run").keep("a", refs)
    text = (store.shelf.root / "manifests" / "run" / "a").read_text()
    assert text == "\n".join(("filmroll-manifest-1 2", *sorted(map(name, refs)), ""))


def test_a_label_grows_until_it_is_dropped(store: Store) -> None:
    one, two = put(store, 2)
    manifest = Manifest(store, "run")
    manifest.keep("a", [one])
    manifest.keep("a", [two])
    manifest.keep("b", [two])
    assert manifest.images("a") == names(one, two)
    manifest.drop("a")
    manifest.drop("a")
    assert manifest.labels() == ["b"]
    assert manifest.forget() == 1
    assert manifest.labels() == []
    assert list(every_label(store.shelf)) == []


def test_what_is_not_there_cannot_be_kept(store: Store) -> None:
    one, gone, later = put(store, 3)
    store.shelf.delete(object_key(name(gone)))
    manifest = Manifest(store, "run")
    with pytest.raises(ImageNotFoundError, match=gone.sha256):
        manifest.keep("a", [one, gone])
    assert manifest.labels() == []
    manifest.keep("a", [one])
    with pytest.raises(ImageNotFoundError):
        manifest.keep("a", [later, gone])
    assert manifest.images() == names(one)
    manifest.keep("a", [later, gone], missing_ok=True)
    assert manifest.images() == names(one, later)


def test_what_is_kept_is_put_lately_and_in_its_place(store: Store) -> None:
    """Upkeep that has read the manifests before spares what is young."""
    old, leaving = put(store, 2)
    age(store, object_key(name(old)), 20 * DAY)
    store.shelf.move(object_key(name(leaving)), f"{TRASH}/{name(leaving)}")
    age(store, f"{TRASH}/{name(leaving)}", 20 * DAY)
    Manifest(store, "run").keep("a", [old, leaving])
    for ref in (old, leaving):
        assert time.time() - store.shelf.stat(object_key(name(ref))).modified < 3600


@pytest.mark.parametrize("bad", ["", ".", "..", ".a", "a/b", "A", "a b", "é", "x" * 101, "a\n"])
def test_names_that_are_none(store: Store, bad: str) -> None:
    with pytest.raises(ConfigError):
        Manifest(store, bad)
    with pytest.raises(ConfigError):
        Manifest(store, "run").keep(bad, [])


@given(st.sets(st.tuples(st.binary(min_size=32, max_size=32), st.sampled_from([".png", ".jpg", ".webp"]))))
def test_names_come_back_from_their_text(drawn: set[tuple[bytes, str]]) -> None:
    wanted = {digest.hex() + ending for digest, ending in drawn}
    assert read_names(write_names(wanted)) == wanted


GOOD = write_names(digest * 64 + ".png" for digest in "abc")
LINES = GOOD.decode().splitlines(keepends=True)
UNREADABLE = {
    "empty": b"",
    "torn": GOOD[:-1],
    "torn at a line": "".join(LINES[:-1]).encode(),
    "head alone": LINES[0].encode(),
    "no head": "".join(LINES[1:]).encode(),
    "another format": GOOD.replace(b"manifest-1", b"manifest-2"),
    "another count": GOOD.replace(b" 3", b" 4"),
    "padded count": GOOD.replace(b" 3", b" 03"),
    "unsorted": "".join((LINES[0], LINES[2], LINES[1], LINES[3])).encode(),
    "twice": "".join((LINES[0], LINES[1], LINES[1], LINES[3])).encode(),
    "spaces": GOOD.replace(b".png", b".png ", 1),
    "carriage returns": GOOD.replace(b"\n", b"\r\n"),
    "a path": GOOD.replace(b"a" * 64, b"../" + b"a" * 61),
    "upper case": GOOD.replace(b"a", b"A"),
    "zeros": bytes(len(GOOD)),
    "no text": b"\xff" * 100,
    "more": GOOD + b"\n",
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_a_manifest_is_read_whole_or_not_at_all(store: Store, data: bytes) -> None:
    store.shelf.create(f"{MANIFESTS}/run/a", data)
    with pytest.raises(ManifestError):
        read_label(store.shelf, f"{MANIFESTS}/run/a")
    (found,) = every_label(store.shelf)
    assert isinstance(found.error, ManifestError)
    with pytest.raises(ManifestError):
        Manifest(store, "run").keep("a", [])


def test_every_truncation_of_a_manifest_is_found() -> None:
    for length in range(len(GOOD)):
        with pytest.raises(ValueError):
            read_names(GOOD[:length])


def test_what_is_no_manifest_is_not_passed_over(store: Store) -> None:
    folder = store.shelf.root / "manifests"
    (folder / "run" / "deep").mkdir(parents=True)
    for path in ("stray", "run/deep/a", "run/Upper"):
        (folder / path).write_bytes(GOOD)
    (folder / "run" / "link").symlink_to(folder / "stray")
    os.mkfifo(folder / "run" / "fifo")
    (folder / "run" / ".nfs000001").write_bytes(b"a file that a client still has open")
    found = list(every_label(store.shelf))
    assert len(found) == 5
    assert all(label.error for label in found)


# Leases


def leased(store: Store) -> list[Held]:
    return list(every_lease(store.shelf))


def test_a_lease_holds_until_it_ends(store: Store) -> None:
    one, two = put(store, 2)
    with Lease(store, "replay buffer", seconds=60) as lease:
        assert leased(store)[0].names == frozenset()
        lease.hold([one])
        lease.hold([one, two])
        (held,) = leased(open_store(store.shelf.root))
        assert (held.owner, held.names, held.error) == ("replay buffer", names(one, two), None)
        assert 50 < held.expires - time.time() < 61
        lease.release([one])
        assert leased(store)[0].names == names(two)
    assert leased(store) == []


def test_what_is_not_there_cannot_be_held(store: Store) -> None:
    one, gone = put(store, 2)
    store.shelf.delete(object_key(name(gone)))
    with Lease(store, "buffer") as lease:
        lease.hold([one])
        with pytest.raises(ImageNotFoundError, match=gone.sha256):
            lease.hold([gone])
        assert lease.images == leased(store)[0].names == names(one)


def test_a_lease_renews_itself(store: Store) -> None:
    with Lease(store, "buffer", seconds=0.3):
        (first,) = leased(store)
        wait(lambda: leased(store)[0].expires > first.expires + 0.3)


def test_a_lease_whose_file_is_gone_is_written_again(store: Store) -> None:
    (one,) = put(store, 1)
    with Lease(store, "buffer", seconds=0.3) as lease:
        lease.hold([one])
        store.shelf.delete(leased(store)[0].key)
        wait(lambda: leased(store) != [])
        assert leased(store)[0].names == names(one)


def test_a_lease_that_was_over_looks_after_its_images_again(store: Store) -> None:
    """As after a night in which the machine slept and upkeep ran."""
    here, leaving, gone = put(store, 3)
    with Lease(store, "buffer", seconds=3600) as lease:
        lease.hold([here, leaving, gone])
        lease._renewed -= 3601
        store.shelf.move(object_key(name(leaving)), f"{TRASH}/{name(leaving)}")
        store.shelf.delete(object_key(name(gone)))
        with pytest.raises(ImageNotFoundError, match=gone.sha256):
            lease.renew()
        assert store.shelf.stat(object_key(name(leaving)))
        assert leased(store)[0].expires > time.time() + 3000
        lease.renew()


def test_a_failing_store_does_not_end_the_renewals(store: Store) -> None:
    (one,) = put(store, 1)
    with Lease(store, "buffer", seconds=0.3) as lease:
        lease.hold([one])
        away = store.shelf.root.rename(store.shelf.root.with_name("away"))
        store.shelf.root.write_text("no folder")
        time.sleep(0.5)
        store.shelf.root.unlink()
        away.rename(store.shelf.root)
        wait(lambda: leased(store)[0].expires > time.time())


@pytest.mark.parametrize("seconds", [0, -1, MAX_SECONDS + 1, float("inf"), float("nan")])
def test_a_lease_has_an_end(store: Store, seconds: float) -> None:
    with pytest.raises(ConfigError):
        Lease(store, "buffer", seconds=seconds)


NOTE = {"format": "filmroll-lease-1", "owner": "x", "seconds": 60.0, "images": ["a" * 64 + ".png"]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xff",
        b'{"images":' + b"[" * 100_000,
        b'{"x":' * 100_000,
        *(
            msgspec.json.encode(NOTE | change)
            for change in (
                {"format": "filmroll-lease-2"},
                {"seconds": 1e9},
                {"seconds": -1},
                {"seconds": None},
                {"images": ["../../etc/passwd"]},
                {"images": ["a" * 63 + ".png"]},
                {"owner": "x" * 201},
                {"more": 1},
            )
        ),
        msgspec.json.encode(NOTE)[:-1],
    ],
    ids=range(15),
)
def test_a_lease_is_read_strictly(store: Store, data: bytes) -> None:
    store.shelf.create(f"{LEASES}/aa", data)
    (held,) = leased(store)
    assert isinstance(held.error, ManifestError)


def test_a_written_lease_is_readable(store: Store) -> None:
    store.shelf.create(f"{LEASES}/aa", msgspec.json.encode(NOTE))
    assert leased(store)[0].error is None
