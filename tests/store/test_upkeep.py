"""Upkeep as a program calls it: what gc says and spares, sweep, verify, stats."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest

from filmroll.errors import ImageLimitError, ManifestError
from filmroll.image import ImageRef
from filmroll.store import Lease, Limits, Manifest, Store, open_store
from filmroll.store.keys import FEATURES, LEASES, MANIFESTS, QUARANTINE, TEMPORARY, TRASH, object_key, object_name
from filmroll.store.upkeep.gc import Collected, gc
from filmroll.store.upkeep.leases import LeaseNote
from filmroll.store.upkeep.stats import census
from filmroll.store.upkeep.sweep import sweep
from filmroll.store.upkeep.tally import Tally
from filmroll.store.upkeep.verify import verify
from tests.store.meddling import PLACES, Place
from tests.store.pictures import noise

DAY = 86_400


def object_of(ref: ImageRef) -> str:
    return object_name(ref.sha256, ref.media_type)


def place_of(ref: ImageRef) -> str:
    return object_key(object_of(ref))


def trash_of(ref: ImageRef) -> str:
    return f"{TRASH}/{object_of(ref)}"


@pytest.fixture(params=PLACES)
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    return PLACES[request.param](tmp_path / "store")


@pytest.fixture
def store(place: Place) -> Store:
    return place.store()


def put(place: Place, count: int, *, days: float = 0, first: int = 0) -> list[ImageRef]:
    refs = [place.store().put(noise(5, 5, seed=seed)) for seed in range(first, first + count)]
    for ref in refs:
        place.age(place_of(ref), days * DAY)
    return refs


def lease(store: Store, key: str, seconds: float, refs: list[ImageRef]) -> None:
    note = LeaseNote("filmroll-lease-1", "somebody", seconds, [object_of(ref) for ref in refs])
    store.shelf.create(f"{LEASES}/{key}", msgspec.json.encode(note))


def contents(store: Store) -> list[tuple[str, int, float]]:
    return sorted((item.key, item.nbytes, item.modified) for item in store.shelf.items())


def counts(done: Collected) -> dict[str, int]:
    return {name: getattr(done, name).count for name in Collected.__slots__ if name != "foreign"}


@pytest.fixture
def full(place: Place, store: Store) -> dict[str, list[ImageRef]]:
    """Different numbers of every kind, so that none is taken for another."""
    refs = {
        "kept": put(place, 1, first=0),
        "held": put(place, 2, first=10),
        "fresh": put(place, 3, first=20),
        "old": put(place, 4, first=30, days=2),
        "leaving": put(place, 5, first=40),
        "gone": put(place, 6, first=50),
        "back": put(place, 7, first=60),
    }
    Manifest(store, "run").keep("step", [*refs["kept"], *refs["back"]])
    lease(store, "live", 7 * DAY, refs["held"])
    for kind, days in (("leaving", 0.5), ("gone", 2), ("back", 2)):
        for ref in refs[kind]:
            store.shelf.move(place_of(ref), trash_of(ref))
            place.age(trash_of(ref), days * DAY)
    for ref in (*refs["kept"], *refs["held"]):
        place.age(place_of(ref), 9 * DAY)
    return refs


# gc


def test_without_delete_gc_says_what_it_would_do_and_does_not(store: Store, full: dict[str, list[ImageRef]]) -> None:
    before = contents(store)
    planned = gc(store)
    assert contents(store) == before
    expected = {"removed": 6, "trashed": 4, "restored": 7, "manifest": 1, "lease": 2, "fresh": 3, "waiting": 5}
    assert counts(planned) == expected
    assert planned.trashed.nbytes == sum(ref.nbytes for ref in full["old"])
    assert counts(gc(store, delete=True)) == expected
    assert {key for key, *_ in contents(store) if len(key) > 60} == {
        *(place_of(ref) for kind in ("kept", "held", "fresh", "back") for ref in full[kind]),
        *(trash_of(ref) for kind in ("old", "leaving") for ref in full[kind]),
    }


def test_an_image_that_nothing_needs_is_gone_after_two_rounds_and_a_day_in_trash(place: Place, store: Store) -> None:
    (ref,) = put(place, 1)
    for days, where in ((0.9, place_of), (1.1, trash_of), (0.0, trash_of), (0.9, trash_of), (1.1, None)):
        if days:
            place.age(where(ref) if where and store.shelf.stat(where(ref)) else _either(store, ref), days * DAY)
        gc(store, delete=True)
        assert [key for key, *_ in contents(store)] == ([where(ref)] if where else [])
        if where:
            assert store.read(ref)


def _either(store: Store, ref: ImageRef) -> str:
    return place_of(ref) if store.shelf.stat(place_of(ref)) else trash_of(ref)


@pytest.mark.parametrize("key", [f"{MANIFESTS}/other/step", f"{MANIFESTS}/stray", f"{LEASES}/bad"])
@pytest.mark.parametrize("data", [b"", b"filmroll-manifest-1 1\n", b"\0\0"])
def test_what_cannot_be_read_stops_gc_before_it_removes_anything(
    store: Store, full: dict[str, list[ImageRef]], key: str, data: bytes
) -> None:
    store.shelf.create(key, data)
    before = contents(store)
    for delete in (False, True):
        with pytest.raises(ManifestError, match=key.rpartition("/")[2]):
            gc(store, delete=delete)
    assert contents(store) == before


def test_a_lease_that_is_over_protects_nothing(place: Place, store: Store) -> None:
    live, over = put(place, 1, days=2), put(place, 1, days=2, first=1)
    lease(store, "live", 3600, live)
    lease(store, "over", 3600, over)
    place.age(f"{LEASES}/live", 3500)
    place.age(f"{LEASES}/over", 3700)
    done = gc(store, delete=True)
    assert (done.lease.count, done.trashed.count) == (1, 1)
    assert store.shelf.stat(place_of(live[0]))


def test_what_is_nothing_of_a_stores_is_never_touched(place: Place, store: Store) -> None:
    (ref,) = put(place, 1, days=2)
    strange = [
        "else/README.md",
        "ab/notes.txt",
        f"{'cd' if ref.sha256[:2] == 'ab' else 'ab'}/{object_of(ref)}",
        f"ab/{'ab' * 32}.gif",
        f"ab/{'ab' * 31}.png",
        f"ab/cd/{'ab' * 32}.png",
        f"AB/{'AB' * 32}.png",
        f"{TRASH}/notes.txt",
        f"{QUARANTINE}/{object_of(ref)}.12345678",
        f"{FEATURES}/some.bin",
        "else/where.txt",
    ]
    for key in strange:
        store.shelf.create(key, b"mine")
        place.age(key, 99 * DAY)
    for _ in range(3):
        done = gc(store, delete=True)
        for item in list(store.shelf.items()):
            place.age(item.key, 99 * DAY)
    assert done.foreign == 8
    assert sorted(key for key, *_ in contents(store)) == sorted(strange)


def test_only_when_told_so_is_a_shorter_grace_enough(place: Place, store: Store) -> None:
    put(place, 1, days=0.5)
    assert gc(store, delete=True).trashed.count == 0
    assert gc(store, delete=True, grace=0.25 * DAY).trashed.count == 1
    assert gc(store, delete=True).removed.count == 0
    assert gc(store, delete=True, grace=0).removed.count == 1
    assert contents(store) == []


def test_an_empty_place_has_nothing_to_collect(store: Store) -> None:
    assert counts(gc(store)) == dict.fromkeys(counts(Collected()), 0)
    assert sum(counts(gc(store, delete=True)).values()) == 0


def test_a_good_copy_in_trash_replaces_a_damaged_one(place: Place, store: Store) -> None:
    (ref,) = put(place, 1)
    Manifest(store, "run").keep("step", [ref])
    store.shelf.copy(place_of(ref), trash_of(ref))
    store.shelf.replace(place_of(ref), b"damage")
    gc(store, delete=True)
    assert store.shelf.stat(trash_of(ref)) is None
    assert store.read(ref)


def test_many_images_take_many_threads(place: Place, store: Store) -> None:
    refs = put(place, 60, days=2)
    Manifest(store, "run").keep("step", refs[::3])
    done = gc(store, delete=True)
    assert (done.manifest.count, done.trashed.count) == (20, 40)
    assert all(store.read(ref) for ref in refs)


# sweep


def test_sweep_removes_leftovers_and_never_an_image(
    place: Place, store: Store, full: dict[str, list[ImageRef]]
) -> None:
    before = {key for key, *_ in contents(store)}
    leftovers = [f"{TEMPORARY}/1-aa", f"{TEMPORARY}/2-bb", f"{FEATURES}/ab/x", f"{LEASES}/over"]
    lease(store, "over", 10, full["old"])
    for key in leftovers[:3]:
        store.shelf.create(key, b"x")
    for key in (f"{TEMPORARY}/young", f"{FEATURES}/young"):
        store.shelf.create(key, b"x")
    lease(store, "just-over", 10, full["old"])
    place.age(f"{LEASES}/just-over", 3600)
    store.shelf.create(f"{LEASES}/unreadable", b"x")
    store.shelf.create(f"{QUARANTINE}/{object_of(full['old'][0])}.aa", b"x")
    for key in (
        *leftovers,
        f"{LEASES}/unreadable",
        f"{QUARANTINE}/{object_of(full['old'][0])}.aa",
        f"{MANIFESTS}/run/step",
    ):
        place.age(key, 3 * DAY)
    done = sweep(store)
    assert (done.temporary, done.features, done.leases) == (2, 1, 1)
    left = {key for key, *_ in contents(store)}
    assert left >= before
    assert left.isdisjoint(leftovers)
    assert len(left - before) == 5
    done = sweep(store, time_to_live=0)
    assert (done.temporary, done.features, done.leases) == (1, 1, 1)
    assert {key for key, *_ in contents(store)} >= before


# verify


def test_a_whole_store_is_found_whole(store: Store, full: dict[str, list[ImageRef]]) -> None:
    seen: list[tuple[int, int]] = []
    done = verify(store, lambda *step: seen.append(step))
    assert (done.images, done.damaged, done.foreign) == (28, [], [])
    assert done.nbytes == sum(ref.nbytes for refs in full.values() for ref in refs)
    assert seen[-1] == (done.nbytes, done.nbytes)
    assert [step for step, _ in seen] == sorted(step for step, _ in seen)


def test_damage_is_named_and_set_aside(place: Place, store: Store) -> None:
    flipped, short, empty, leaving, good = refs = put(place, 5)
    bytes_of = {ref.sha256: store.read(ref) for ref in refs}
    data = bytes_of[flipped.sha256]
    store.shelf.replace(place_of(flipped), data[:40] + bytes([data[40] ^ 1]) + data[41:])
    store.shelf.replace(place_of(short), bytes_of[short.sha256][:-1])
    store.shelf.replace(place_of(empty), b"")
    store.shelf.move(place_of(leaving), trash_of(leaving))
    store.shelf.replace(trash_of(leaving), b"rubbish")
    done = verify(store)
    damaged = [place_of(flipped), place_of(short), place_of(empty), trash_of(leaving)]
    assert sorted(finding.key for finding in done.damaged) == sorted(damaged)
    assert {finding.problem for finding in done.damaged} == {"its bytes have another digest; it was set aside"}
    keys = [key for key, *_ in contents(store)]
    assert place_of(good) in keys
    assert not set(damaged) & set(keys)
    assert sum(key.startswith(f"{QUARANTINE}/") for key in keys) == 4
    assert verify(store).damaged == []


def test_what_is_needed_and_missing_is_damage(place: Place, store: Store) -> None:
    kept, held, both, there = put(place, 4)
    Manifest(store, "run").keep("step", [kept, both, there])
    lease(store, "aa", 3600, [held, both])
    for ref in (kept, held, both):
        store.shelf.delete(place_of(ref))
    store.shelf.move(place_of(there), trash_of(there))
    found = {finding.key: finding.problem for finding in verify(store).damaged}
    assert set(found) == {place_of(kept), place_of(held), place_of(both)}
    assert found[place_of(kept)] == "the manifest run, label step, needs it, and it is not there"
    assert "the lease 'somebody'" in found[place_of(held)]


def test_what_readers_find_in_quarantine_is_not_missing(place: Place, store: Store) -> None:
    """As after a kill while a damaged image was set aside that had just been put again."""
    for act in (lambda ref: verify(store), lambda ref: Manifest(store, "other").keep("step", [ref])):
        (ref,) = put(place, 1)
        Manifest(store, "run").keep("step", [ref])
        store.shelf.move(place_of(ref), f"{QUARANTINE}/{object_of(ref)}.12345678")
        act(ref)
        assert store.shelf.stat(place_of(ref))
        assert verify(store).damaged == []
        store.shelf.delete(f"{QUARANTINE}/{object_of(ref)}.12345678")


def test_what_cannot_be_read_as_a_manifest_is_damage(store: Store) -> None:
    store.shelf.create(f"{MANIFESTS}/run/step", b"")
    store.shelf.create(f"{LEASES}/aa", b"")
    assert [finding.key for finding in verify(store).damaged] == ["manifest run/step", f"{LEASES}/aa"]


def test_strangers_are_reported_and_do_no_harm(store: Store) -> None:
    for key in ("else/notes.txt", f"{TRASH}/notes.txt", f"ab/{'cd' * 32}.png"):
        store.shelf.create(key, b"x")
    done = verify(store)
    assert sorted(finding.key for finding in done.foreign) == sorted(
        ("else/notes.txt", f"{TRASH}/notes.txt", f"ab/{'cd' * 32}.png")
    )
    assert done.damaged == []


def test_what_is_too_large_to_read_is_said_and_left_alone(place: Place, store: Store) -> None:
    (ref,) = put(place, 1)
    store.limits = Limits(max_bytes=ref.nbytes - 1)
    with pytest.raises(ImageLimitError):
        store.read(ref)
    (finding,) = verify(store).damaged
    assert finding.key == place_of(ref)
    assert "cannot be verified" in finding.problem
    assert store.shelf.stat(place_of(ref))


def test_no_file_in_an_images_place(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    refs = [store.put(noise(5, 5, seed=seed)) for seed in range(3)]
    paths = [tmp_path / place_of(ref) for ref in refs]
    for path in paths:
        path.unlink()
    paths[0].symlink_to("/etc/passwd")
    os.mkfifo(paths[1])
    paths[2].mkdir()
    (tmp_path / "stray").symlink_to("/dev/zero")
    done = verify(store)
    assert sorted(finding.key for finding in done.damaged) == sorted(place_of(ref) for ref in refs[:2])
    assert [(finding.key, finding.problem) for finding in done.foreign] == [("stray", "it is no file")]
    assert gc(store, grace=0).foreign == 1


def test_an_unwritable_store_is_verified_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    good, bad = (store.put(noise(5, 5, seed=seed)) for seed in range(2))
    (tmp_path / place_of(bad)).write_bytes(b"damage")

    def read_only(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    for call in ("replace", "link", "unlink", "mkdir", "utime"):
        monkeypatch.setattr(os, call, read_only)
    (finding,) = verify(store).damaged
    assert finding.key == place_of(bad)
    assert "another digest" in finding.problem
    assert "Read-only" in finding.problem
    assert store.read(good)
    assert gc(store).fresh.count == 2
    assert census(store).images["image/png"].count == 2


# stats


def test_stats_count_everything_once(place: Place, store: Store, full: dict[str, list[ImageRef]]) -> None:
    shared = full["kept"][0]
    Manifest(store, "other").keep("a", [shared, *full["fresh"]])
    Manifest(store, "other").keep("b", full["fresh"][:1])
    store.shelf.delete(place_of(full["fresh"][2]))
    lease(store, "over", 1, full["old"])
    place.age(f"{LEASES}/over", 60)
    store.shelf.create(f"{TEMPORARY}/x", b"123")
    store.shelf.create(f"{QUARANTINE}/x", b"12")
    store.shelf.create("else/notes.txt", b"1")
    done = census(store)
    assert done.images["image/png"].count == 1 + 2 + 2 + 4
    assert done.unreferenced.count == 4
    assert done.folders[TRASH].count == 5 + 6 + 7
    assert (done.folders[TEMPORARY], done.folders[QUARANTINE], done.foreign) == (Tally(1, 3), Tally(1, 2), Tally(1, 1))
    other, run = done.manifests["other"], done.manifests["run"]
    assert (other.labels, other.images.count, other.only.count, other.missing) == (2, 3, 2, 1)
    assert (run.labels, run.images.count, run.only.count, run.missing) == (1, 8, 7, 0)
    assert run.only.nbytes == sum(ref.nbytes for ref in full["back"])
    assert sorted((held.images, held.seconds > 0) for held in done.leases) == [(2, True), (4, False)]
    assert done.unreadable == []


def test_stats_say_what_cannot_be_read(store: Store) -> None:
    store.shelf.create(f"{MANIFESTS}/run/step", b"")
    with Lease(store, "buffer"):
        done = census(store)
    assert len(done.unreadable) == 1
    assert "manifests/run/step" in done.unreadable[0]
    assert [(held.owner, held.images) for held in done.leases] == [("buffer", 0)]


def test_upkeep_does_not_wait_for_anybody(place: Place, store: Store) -> None:
    """A store that is written meanwhile: all of it ends, and nothing is reported that is not so."""
    refs = put(place, 30)
    Manifest(store, "run").keep("step", refs)
    began = time.monotonic()

    def meddle() -> None:
        nonlocal meddled
        meddled += 1
        if meddled % 5 == 0:
            store.put(noise(6, 6, seed=meddled))

    meddled = 0
    busy = place.store(meddle)
    assert verify(busy).damaged == []
    assert gc(busy, delete=True).trashed.count == 0
    assert census(busy).manifests["run"].missing == 0
    sweep(busy)
    assert meddled > 30
    assert time.monotonic() - began < 120
