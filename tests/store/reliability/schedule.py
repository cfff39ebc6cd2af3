"""A few processes use one store on a simulated disk, call by call in an order that chance chooses.

After each call that changes what a crash would leave, or what is promised, `at_every_change` may look.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeAlias

from filmroll.errors import ImageDamagedError, ImageNotFoundError, StoreUnavailableError
from filmroll.store import Store, open_store
from filmroll.store.ingest.canonical import Canonical
from filmroll.store.keys import TRASH, object_key
from tests.store.reliability.calls import Call, answered_by
from tests.store.reliability.disk import Disk, File
from tests.store.reliability.operations import image, ref_of

ROOT = "/data/runs/store"
IMAGES = [image(f"image {number}", length=64) for number in range(3)]

Step: TypeAlias = Callable[["Process"], None]


class _EndedError(BaseException):
    """The schedule is over, wherever a process stands."""


class Promises:
    """Which images a put has acknowledged, and nothing has damaged since that put began."""

    def __init__(self) -> None:
        self.kept: set[str] = set()
        self.damages: Counter[str] = Counter()

    def damage(self, kept: Canonical) -> None:
        self.damages[kept.sha256] += 1
        self.kept.discard(kept.sha256)

    def put(self, store: Store, kept: Canonical) -> None:
        before = self.damages[kept.sha256]
        store.write(kept)
        if self.damages[kept.sha256] == before:
            self.kept.add(kept.sha256)


class Process(threading.Thread):
    """One of several, of which one at a time makes one call at a time."""

    def __init__(self, schedule: Schedule, steps: Iterable[Step]) -> None:
        super().__init__(daemon=True)
        self.schedule, self.steps = schedule, steps
        self.store = open_store(ROOT)
        self.error: BaseException | None = None
        self.ended = False
        self.next_call = ""
        self.held = 0
        """Calls of others for which it waits."""
        self._mine, self._given_back = threading.Lock(), threading.Lock()
        self._mine.acquire()
        self._given_back.acquire()

    def run(self) -> None:
        try:
            with answered_by(self._answer):
                for step in self.steps:
                    # What fails is tried once more; then this process goes on.
                    try:
                        step(self)
                    except StoreUnavailableError:
                        with suppress(StoreUnavailableError):
                            step(self)
        except BaseException as error:  # noqa: BLE001 - raised again where the schedule runs
            self.error = error
        self.ended = True
        self._given_back.release()

    def one_call(self) -> None:
        self._mine.release()
        self._given_back.acquire()
        if self.error is not None and not isinstance(self.error, _EndedError):
            raise self.error

    def begin(self) -> None:
        """Up to the first call."""
        self.start()
        self._given_back.acquire()

    def _answer(self, name: str, real: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.next_call = name
        self._given_back.release()
        self._mine.acquire()
        if self.schedule.over:
            raise _EndedError
        return self.schedule.answer(name, real, args, kwargs)


class Schedule:
    """Everything follows from the number."""

    def __init__(self, number: int, heard: Callable[[Any], bool] | None = None) -> None:
        self.chance = random.Random(number)
        self.disk = Disk() if heard is None else Disk(heard=heard)
        self.promises = Promises()
        self.over = False
        self.calls = self.crashes = 0
        self.faults = self.chance.choice((0.0, 0.0, 0.02))
        self.haste = self.chance.choice((0.1, 0.3, 0.7))
        self.slowness = self.chance.choice((0.0, 0.3, 0.8))
        # The fewer images, the more they meet.
        self.images = IMAGES[: self.chance.choice((1, 1, 2, 3))]
        self.processes = [Process(self, self._steps(slot)) for slot in range(self.chance.randint(1, 3))]

    def run(self, at_every_change: Callable[[Schedule], None]) -> None:
        try:
            for process in self.processes:
                process.begin()
            process = self.processes[0]
            while going := [one for one in self.processes if not one.ended]:
                process = self._next(process, going)
                before = self.disk.changes, len(self.promises.kept)
                process.one_call()
                self.calls += 1
                if (self.disk.changes, len(self.promises.kept)) != before:
                    self.crashes += 1
                    at_every_change(self)
        finally:
            self.over = True
            for process in self.processes:
                while process.is_alive() and not process.ended:
                    process.one_call()
        assert not self.disk.opened

    def _next(self, process: Process, going: list[Process]) -> Process:
        """Mostly the one that is at it; but a sync may take as long as all that others do meanwhile."""
        if process.next_call == "fsync" and self.chance.random() < self.slowness:
            process.held = self.chance.randint(1, 60)
        if process.ended or process.held or self.chance.random() < self.haste:
            process = self.chance.choice([one for one in going if not one.held] or going)
        for one in going:
            one.held = max(0, one.held - 1)
        return process

    def answer(self, name: str, real: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Who goes on after a sync that failed must not take it for done.
        struck = name != "close" and self.chance.random() < self.faults * (10 if name == "fsync" else 1)
        late = struck and self.chance.random() < 0.5
        done = self.disk(name, real, args, kwargs) if late or not struck else None
        if not struck:
            return done
        if late and name == "open":
            self.disk("close", real, (done,), {})
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _steps(self, slot: int) -> list[Step]:
        """What one process does; only the first one moves images out and back, as one gc at a time does."""
        kinds = [put, put, put, put_as_another, put_as_another, read, damage, damage, grow_old]
        if slot == 0 and self.chance.random() < 0.5:
            kinds = [put, discard, collect, collect]
        return [self._step(self.chance.choice(kinds)) for _ in range(self.chance.randint(1, 6))]

    def _step(self, kind: Callable[[Process, Canonical], None]) -> Step:
        kept = self.chance.choice(self.images)
        return lambda process: kind(process, kept)


def put(process: Process, kept: Canonical) -> None:
    # Who has verified an image does not look at it again: what is damaged after that is for another to find.
    again = process.schedule.promises.damages[kept.sha256] > 0
    process.schedule.promises.put(open_store(ROOT) if again else process.store, kept)


def put_as_another(process: Process, kept: Canonical) -> None:
    process.store = open_store(ROOT)
    put(process, kept)


def read(process: Process, kept: Canonical) -> None:
    with suppress(ImageNotFoundError, ImageDamagedError):
        assert process.store.read(ref_of(process.store, kept)) == kept.data


def damage(process: Process, kept: Canonical) -> None:
    """The disk itself loses a bit, or the end of a file: no call does that."""
    file = process.schedule.disk.find(f"{ROOT}/{_key(kept)}")
    if isinstance(file, File) and file.safe == file.data:
        process.schedule.promises.damage(kept)
        file.data = file.safe = process.schedule.chance.choice((file.data[:-1], b"?" + file.data[1:]))


def grow_old(process: Process, kept: Canonical) -> None:
    file = process.schedule.disk.find(f"{ROOT}/{_key(kept)}")
    if file is not None:
        file.modified = 0


def discard(process: Process, kept: Canonical) -> None:
    with suppress(FileNotFoundError):
        process.store.shelf.move(_key(kept), _trash(kept))


def collect(process: Process, kept: Canonical) -> None:
    """Out, and back because somebody needs it."""
    discard(process, kept)
    with suppress(FileNotFoundError):
        process.store.shelf.copy(_trash(kept), _key(kept))
        process.store.shelf.delete(_trash(kept))


def _key(kept: Canonical) -> str:
    return object_key(f"{kept.sha256}.png")


def _trash(kept: Canonical) -> str:
    return f"{TRASH}/{kept.sha256}.png"
