"""gc beside writers, other gcs and crashes: at every call that it makes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import msgspec
import pytest

from filmroll.errors import ImageNotFoundError
from filmroll.image import ImageRef
from filmroll.store import Lease, Manifest, Store
from filmroll.store.ingest.canonical import canonical
from filmroll.store.keys import LEASES, MANIFESTS, TRASH, object_key, object_name
from filmroll.store.upkeep.gc import gc
from filmroll.store.upkeep.leases import LeaseNote
from filmroll.store.upkeep.manifests import write_names
from tests.store.effort import effort
from tests.store.meddling import PLACES, CrashError, Folder, Place, crash_at, once_at
from tests.store.pictures import noise

DAY = 86_400
NEEDED = ("manifest", "lease", "fresh")
"""Why an image may not be lost; those that are `old` or `damaged` may."""
WHERE = ("place", "trash", "both", "twice")
"""In place, in trash, in both as one file with two names, in both as two files."""
KINDS = [f"{why}-{where}" for why in (*NEEDED, "old") for where in WHERE] + ["damaged-place"]
STEP = effort(5, 1)
"""`make reliability` tries every call, `make test` every fifth."""

reliability = pytest.mark.reliability


def object_of(ref: ImageRef) -> str:
    return object_name(ref.sha256, ref.media_type)


def place(ref: ImageRef) -> str:
    return object_key(object_of(ref))


def trash(ref: ImageRef) -> str:
    return f"{TRASH}/{object_of(ref)}"


class Scene:
    """A store with an image of every kind that gc tells apart, set up anew as often as one likes."""

    def __init__(self, where: Place) -> None:
        self.where = where
        self.store = where.store()
        self.pictures = {kind: noise(4, 4, seed=seed) for seed, kind in enumerate(KINDS)}
        self.refs = {kind: self.store.put(picture) for kind, picture in self.pictures.items()}

    def all_of(self, *whys: str) -> list[ImageRef]:
        return [ref for kind, ref in self.refs.items() if kind.startswith(whys)]

    def renew(self) -> None:
        shelf = self.store.shelf
        for item in list(shelf.items()):
            shelf.delete(item.key)
        for kind, ref in self.refs.items():
            why, _, where = kind.partition("-")
            data = b"damage" if why == "damaged" else canonical(self.pictures[kind]).data
            if where != "trash":
                shelf.create(place(ref), data)
            if where in ("trash", "twice"):
                shelf.create(trash(ref), data)
            elif where == "both":
                self.where.link(place(ref), trash(ref))
        needed = write_names(map(object_of, self.all_of("manifest")))
        held = LeaseNote("filmroll-lease-1", "somebody", 7 * DAY, [object_of(ref) for ref in self.all_of("lease")])
        shelf.create(f"{MANIFESTS}/run/step", needed)
        shelf.create(f"{LEASES}/aa", msgspec.json.encode(held))
        self.grow_old([ref for ref in self.refs.values() if ref not in self.all_of("fresh")])

    def grow_old(self, refs: Iterable[ImageRef]) -> None:
        """Let these be put two days ago, and have come into trash as long ago."""
        for ref in refs:
            for key in (place(ref), trash(ref)):
                if self.has(key):
                    self.where.age(key, 2 * DAY)

    def has(self, key: str) -> bool:
        return self.store.shelf.stat(key) is not None

    def check(self, refs: Iterable[ImageRef]) -> None:
        for ref in refs:
            assert self.store.read(ref)

    def in_place(self, refs: Iterable[ImageRef]) -> bool:
        return all(self.has(place(ref)) for ref in refs)


@pytest.fixture(params=PLACES)
def scene(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Scene:
    # No machine crashes here, and thousands of files are written.
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    return Scene(PLACES[request.param](tmp_path / "store"))


def collect(store: Store) -> None:
    # One thread: the calls come in the same order each time.
    gc(store, delete=True, threads=1)


def test_each_kind_goes_its_way(scene: Scene) -> None:
    scene.renew()
    collect(scene.store)
    for kind, ref in scene.refs.items():
        why, _, where = kind.partition("-")
        leaves = kind in ("old-place", "damaged-place")
        assert scene.has(place(ref)) == (why in ("manifest", "lease") or (where != "trash" and not leaves)), kind
        assert scene.has(trash(ref)) == (leaves or (why == "fresh" and where != "place")), kind


@reliability
def test_a_crash_at_any_call_loses_nothing_and_the_next_gc_completes(scene: Scene) -> None:
    needed = scene.all_of("manifest", "lease")
    for number in itertools.count(1, STEP):
        scene.renew()
        try:
            collect(scene.where.store(crash_at(number)))
        except CrashError:
            scene.check(scene.all_of(*NEEDED))
        else:
            break
        collect(scene.store)
        scene.check(scene.all_of(*NEEDED))
        assert scene.in_place(needed)
        assert not any(scene.has(trash(ref)) for ref in needed)
        # What lies in both is removed from trash, comes into trash, and is removed from there again.
        for _ in range(3):
            scene.grow_old(scene.refs.values())
            collect(scene.store)
        scene.check(needed)
        assert not any(
            scene.has(key(ref)) for ref in scene.refs.values() if ref not in needed for key in (place, trash)
        )
    assert number > 40


def put(scene: Scene, store: Store, stack: ExitStack) -> list[ImageRef]:
    wanted = [picture for kind, picture in scene.pictures.items() if kind.startswith(("old", "damaged"))]
    return [store.put(picture) for picture in (*wanted, noise(4, 4, seed=99))]


def put_what_was_known(scene: Scene, store: Store, stack: ExitStack) -> list[ImageRef]:
    """By a process that has put it long ago, and no more looks at its bytes."""
    for ref in scene.all_of("old"):
        store._known.add(place(ref), None)
    return put(scene, store, stack)


def put_and_keep(scene: Scene, store: Store, stack: ExitStack) -> list[ImageRef]:
    refs = put(scene, store, stack)
    Manifest(store, "other").keep("label", refs)
    return refs


def keep(scene: Scene, store: Store, stack: ExitStack) -> list[ImageRef]:
    """Refer to images without putting them again: of those that are gone for good it is said."""
    return _referred(scene, lambda ref: Manifest(store, "other").keep("label", [ref]))


def hold(scene: Scene, store: Store, stack: ExitStack) -> list[ImageRef]:
    lease = stack.enter_context(Lease(store, "other"))
    return _referred(scene, lambda ref: lease.hold([ref]))


def rename_label(scene: Scene, store: Store, stack: ExitStack) -> list[ImageRef]:
    refs = scene.all_of("manifest")
    Manifest(store, "other").keep("label", refs)
    Manifest(store, "run").drop("step")
    return refs


def collect_too(scene: Scene, store: Store, stack: ExitStack) -> list[ImageRef]:
    collect(store)
    return scene.all_of(*NEEDED)


def collect_and_put(scene: Scene, store: Store, stack: ExitStack) -> list[ImageRef]:
    collect(store)
    return put(scene, store, stack)


def collect_and_crash(scene: Scene, store: Store, stack: ExitStack) -> list[ImageRef]:
    for number in (20, 40, 60):
        with suppress(CrashError):
            collect(scene.where.store(crash_at(number)))
    return scene.all_of(*NEEDED)


def _referred(scene: Scene, refer: Callable[[ImageRef], None]) -> list[ImageRef]:
    promised = []
    for ref in scene.all_of("old"):
        with suppress(ImageNotFoundError):
            refer(ref)
            promised.append(ref)
    return promised


Act = Callable[[Scene, Store, ExitStack], list[ImageRef]]
"""What another process does meanwhile; the images that it is then promised."""

PUTS: tuple[Act, ...] = (put, put_what_was_known)
REFERRED: tuple[Act, ...] = (put_and_keep, keep, hold, rename_label)
GCS: tuple[Act, ...] = (collect_too, collect_and_put, collect_and_crash)


@reliability
@pytest.mark.parametrize("act", [*PUTS, *REFERRED, *GCS], ids=lambda act: act.__name__)
def test_whatever_others_do_at_any_call_nothing_is_lost(scene: Scene, act: Act) -> None:
    for number in itertools.count(1, STEP):
        scene.renew()
        promised: list[ImageRef] = []
        with ExitStack() as stack:
            doing = once_at(
                number,
                lambda: promised.extend(act(scene, scene.store, stack)),  # noqa: B023 - called in this round
                lambda: scene.check(promised),  # noqa: B023
            )
            collect(scene.where.store(doing))
            if not promised:
                break
            if act in (keep, hold):
                assert set(scene.all_of("old")) - set(promised) <= {scene.refs["old-trash"]}
            # Others may read a folder's files by their paths, and do not look into trash.
            if act in REFERRED or (act in PUTS and isinstance(scene.where, Folder)):
                assert scene.in_place(promised)
            collect(scene.store)
            scene.check([*promised, *scene.all_of(*NEEDED)])
            if act in REFERRED:
                for _ in range(2):
                    scene.grow_old(promised)
                    collect(scene.store)
                scene.check(promised)
    assert number > 40


@reliability
def test_whoever_refers_to_images_may_be_as_slow_as_he_likes(scene: Scene) -> None:
    """Days and gcs pass before any one of his calls, and what he is promised then is there."""

    def days_pass() -> None:
        passed.append(3)
        for _ in range(3):
            scene.grow_old(scene.refs.values())
            collect(scene.store)

    for number in itertools.count(1):
        scene.renew()
        passed: list[int] = []
        slow = scene.where.store(once_at(number, days_pass, lambda: None))
        with ExitStack() as stack:
            scene.check([*keep(scene, slow, stack), *hold(scene, slow, stack)])
        if not passed:
            break
    assert number > 20


def test_what_comes_into_trash_has_its_time_there(scene: Scene) -> None:
    """Even if it lay there before, and another gc has listed it then and is about to remove it."""
    refs, lost = scene.all_of("old-both", "old-twice"), []

    def gone_and_back() -> None:
        for _ in range(3):
            collect(scene.store)

    for number in itertools.count(1):
        scene.renew()
        calls: list[None] = []
        collect(scene.where.store(once_at(number, gone_and_back, partial(calls.append, None))))
        lost += [ref for ref in refs if not scene.has(trash(ref)) and not scene.has(place(ref))]
        if not calls:
            break
    # But for the moment between another look and the removal, for each of the two.
    assert len(lost) <= 2
