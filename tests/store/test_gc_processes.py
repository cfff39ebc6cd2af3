"""Many processes that write, read, refer and let go, while gcs run in a loop and are killed."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from filmroll.errors import ImageNotFoundError
from filmroll.image import ImageRef
from filmroll.store import Lease, Manifest, Store
from filmroll.store.ingest.canonical import canonical
from filmroll.store.keys import read_object_name
from filmroll.store.shelves.files import FileShelf
from filmroll.store.upkeep.gc import gc
from tests.store.conftest import Show
from tests.store.effort import effort
from tests.store.pictures import noise

PROCESSES = multiprocessing.get_context("fork")
WRITERS = effort(4, 16)
OPERATIONS = effort(150, 5_000)
GRACE = 0.5
"""A day in this store's life. Whoever is slower than half of it has no promise from `put`, from `keep` he has."""

DAYS = 6
"""A writer goes on for so many at least: a fast machine would else be done before anything is old."""

PICTURES = [canonical(noise(6, 6, seed=seed)).data for seed in range(effort(300, 3_000))]


def open_here(root: Path) -> Store:
    return Store(FileShelf(root), grace=GRACE)


@dataclass
class Told:
    """What a writer has to say."""

    operations: int = 0
    late: int = 0
    """Images that were gone when the writer came back too late."""
    lost: list[str] = field(default_factory=list)
    kept: list[ImageRef] = field(default_factory=list)


class Writer:
    """Does one of a few things at random, and notes every promise that was broken."""

    def __init__(self, root: Path, number: int) -> None:
        self._store = open_here(root)
        self._manifest = Manifest(self._store, f"writer-{number}")
        self._chance = random.Random(number)
        self._kept: dict[str, list[ImageRef]] = {}
        self._held: list[ImageRef] = []
        self._put_before: deque[tuple[float, bytes]] = deque()
        self._told = Told()

    def run(self, operations: int) -> Told:
        acts = (self._put, self._put, self._keep, self._read, self._read, self._read, self._drop, self._hold)
        with Lease(self._store, "a writer", seconds=600) as self._lease:
            end = time.time() + DAYS * GRACE
            while self._told.operations < operations or time.time() < end:
                self._chance.choice(acts)()
                self._told.operations += 1
            self._expect([*self._all_kept(), *self._held], "at the end")
        self._told.kept = self._all_kept()
        return self._told

    def _put(self) -> None:
        began = time.time()
        self._expect(self._put_some(1), "after put", began)

    def _keep(self) -> None:
        began, refs = time.time(), self._put_some()
        label = f"label-{self._chance.randrange(20)}"
        try:
            self._manifest.keep(label, refs)
        except ImageNotFoundError:
            self._missed("keep", began)
            return
        self._kept.setdefault(label, []).extend(refs)
        self._expect(refs, "after keep")

    def _hold(self) -> None:
        began, refs = time.time(), self._put_some()
        self._lease.release(self._held)
        self._held = []
        try:
            self._lease.hold(refs)
        except ImageNotFoundError:
            self._missed("hold", began)
            return
        self._held = refs
        self._expect(refs, "after hold")

    def _read(self) -> None:
        known = [*self._all_kept(), *self._held]
        if known:
            self._expect([self._chance.choice(known)], "later")

    def _drop(self) -> None:
        if self._kept:
            label = self._chance.choice(list(self._kept))
            del self._kept[label]
            self._manifest.drop(label)

    def _put_some(self, count: int = 2) -> list[ImageRef]:
        return [self._store.put(self._picture()) for _ in range(count)]

    def _picture(self) -> bytes:
        """Any, or one that gc is about to find old enough."""
        data = self._chance.choice(PICTURES)
        while self._put_before and self._chance.random() < 0.7 and time.time() - self._put_before[0][0] > 0.9 * GRACE:
            then, data = self._put_before.popleft()
            if time.time() - then < 1.2 * GRACE:
                break
        self._put_before.append((time.time(), data))
        return data

    def _all_kept(self) -> list[ImageRef]:
        return [ref for refs in self._kept.values() for ref in refs]

    def _expect(self, refs: list[ImageRef], when: str, began: float = 0.0) -> None:
        for ref in refs:
            try:
                self._store.read(ref)
            except ImageNotFoundError:
                self._missed(when, began)

    def _missed(self, when: str, began: float) -> None:
        if began and time.time() - began > GRACE / 2:
            self._told.late += 1
        else:
            self._told.lost.append(when)


def write(root: Path, number: int, ours: Connection) -> None:
    ours.send(Writer(root, number).run(OPERATIONS))


def collect_forever(root: Path, ours: Connection) -> None:
    while True:
        done = gc(open_here(root), delete=True)
        ours.send((done.trashed.count, done.removed.count, done.restored.count))


class Crew:
    """Processes that end with the test, each with a pipe on which it reports."""

    def __enter__(self) -> Crew:
        self._processes: list[multiprocessing.Process] = []
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def start(self, target: Callable[..., None], *args: object) -> tuple[multiprocessing.Process, Connection]:
        theirs, ours = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=target, args=(*args, ours))
        process.start()
        ours.close()
        self._processes.append(process)
        return process, theirs


@pytest.mark.reliability
def test_no_promise_is_broken_while_gcs_run_and_are_killed(tmp_path: Path, show: Show) -> None:
    root = tmp_path / "store"
    with Crew() as crew:
        writers = [crew.start(write, root, number)[1] for number in range(WRITERS)]
        steady, reports = crew.start(collect_forever, root)
        chance, rounds, killed = random.Random(0), [], 0
        while not all(pipe.poll() for pipe in writers):
            assert steady.is_alive()
            doomed, _ = crew.start(collect_forever, root)
            time.sleep(chance.random() * 0.3)
            doomed.kill()
            doomed.join()
            killed += 1
            while reports.poll():
                rounds.append(reports.recv())
        told = [pipe.recv() for pipe in writers]
    trashed, removed, restored = (sum(column) for column in zip(*rounds, strict=True))

    assert [when for one in told for when in one.lost] == []
    assert sum(one.operations for one in told) >= WRITERS * OPERATIONS
    removed += check_store(root, [ref for one in told for ref in one.kept])
    assert trashed > 0
    assert removed > 0
    show(
        "concurrent",
        "0 violations, 0 deadlocks",
        writers=WRITERS,
        operations=sum(one.operations for one in told),
        gcs=len(rounds),
        gcs_killed=killed,
        into_trash=trashed,
        removed=removed,
        put_back=restored,
        came_too_late=sum(one.late for one in told),
    )


def check_store(root: Path, kept: list[ImageRef]) -> int:
    """When all is quiet and old, what is referred to is there, and nothing else; how many the last gcs removed."""
    store, removed = open_here(root), 0
    for _ in range(3):
        time.sleep(1.5 * GRACE)
        removed += gc(store, delete=True).removed.count
    for ref in kept:
        assert store.read(ref)
    names = [item.key for item in store.shelf.items() if read_object_name(item.key.rpartition("/")[2])]
    assert len(names) == len({ref.sha256 for ref in kept})
    return removed
