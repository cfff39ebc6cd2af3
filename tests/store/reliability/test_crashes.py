"""The machine ends after every call, and keeps of what was not synced what chance wants: nothing acknowledged is lost.

Every sync that this rests on is made to do nothing, one at a time, and each time something is lost.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import TypeAlias

import pytest

from filmroll.errors import ImageDamagedError, ImageNotFoundError
from filmroll.store import open_store
from filmroll.store.keys import TRASH, object_key
from filmroll.store.shelves import files
from filmroll.store.store import log
from tests.store.conftest import Show
from tests.store.effort import effort
from tests.store.reliability.calls import answered_by, calls_can_be_answered
from tests.store.reliability.disk import Disk, File, Folder
from tests.store.reliability.operations import ref_of
from tests.store.reliability.schedule import IMAGES, ROOT, Schedule

pytestmark = pytest.mark.reliability

PARTS = 10


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(log, "disabled", True)
    with calls_can_be_answered():
        yield


class LostError(AssertionError):
    """An image that was acknowledged is not there."""


def crash(schedule: Schedule) -> None:
    found = schedule.disk.crash(schedule.chance)
    check(found, schedule.promises.kept)
    # Whoever comes after a crash puts his images again, and may be hit by the next one.
    again = schedule.chance.choice(schedule.images)
    with answered_by(found):
        open_store(ROOT).write(again)
    check(found.crash(schedule.chance), schedule.promises.kept | {again.sha256})


def check(disk: Disk, promised: set[str]) -> None:
    """What was promised can be read; of the rest, nothing passes for an image that it is not."""
    with answered_by(disk):
        store = open_store(ROOT)
        for kept in IMAGES:
            try:
                assert store.read(ref_of(store, kept)) == kept.data
            except (ImageNotFoundError, ImageDamagedError) as error:
                if kept.sha256 in promised:
                    raise LostError(f"{kept.data[:10]!r}: {error}") from error
    assert not disk.opened


@pytest.mark.parametrize("part", range(PARTS))
def test_what_was_acknowledged_survives_a_crash_after_any_call(part: int, show: Show) -> None:
    schedules = [Schedule(number) for number in range(part, effort(200, 5000), PARTS)]
    for schedule in schedules:
        schedule.run(crash)
    calls, crashes = (sum(getattr(schedule, what) for schedule in schedules) for what in ("calls", "crashes"))
    show("durable", "0 acknowledged lost", schedules=len(schedules), calls=calls, crashes=2 * crashes)


@pytest.mark.parametrize("number", range(20))
def test_what_a_copy_finds_in_its_place_survives_too(number: int) -> None:
    """An image is put again while upkeep takes it back; the other has not come to its sync."""
    disk, kept = Disk(), IMAGES[0]
    key = object_key(f"{kept.sha256}.png")
    trash = f"{TRASH}/{kept.sha256}.png"
    with answered_by(disk):
        shelf = open_store(ROOT).shelf
        open_store(ROOT).write(kept)
        shelf.move(key, trash)
        disk.heard = lambda node: isinstance(node, File)
        open_store(ROOT).write(kept)
        disk.heard = lambda _: True
        assert not shelf.copy(trash, key)
        shelf.delete(trash)
    check(disk.crash(random.Random(number)), {kept.sha256})


Sync: TypeAlias = tuple[str, str]
"""Of what, and for which method of the shelf."""

NEEDED: list[Sync] = [
    ("file", "create"),
    ("file", "replace"),
    ("shard", "create"),
    ("shard", "replace"),
    ("shard", "settle"),
    ("shard", "copy"),
    ("root", "create"),
    ("root", "copy"),
    ("root", "move"),
    ("above", "create"),
    ("above", "copy"),
]
SPARE: set[Sync] = {
    # What is replaced was placed by one who has seen the folders on disk.
    ("root", "replace"),
    ("above", "replace"),
    # What is kept of damage is nobody's only copy, nor is what lies in trash beside what was just written.
    ("quarantine", "copy"),
    ("trash", "replace"),
}


def sync_of(node: File | Folder) -> Sync:
    frame, method = sys._getframe(), ""
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename == files.__file__:
            method = frame.f_code.co_name
    if isinstance(node, File):
        return "file", method
    if not node.path.startswith(ROOT):
        return "above", method
    folder = node.path[len(ROOT) + 1 :]
    return {0: "root", 2: "shard"}.get(len(folder), folder), method


@pytest.mark.parametrize("sync", NEEDED, ids="-".join)
def test_without_any_one_sync_an_image_is_lost(sync: Sync, show: Show) -> None:
    with pytest.raises(LostError):
        for number in range(3000):
            Schedule(number, lambda node: sync_of(node) != sync).run(crash)
    show("durable, one sync less", "an image lost each time", kinds_of_sync=1)


def test_every_sync_is_known() -> None:
    found: set[Sync] = set()

    def heard(node: File | Folder) -> bool:
        found.add(sync_of(node))
        return True

    for number in range(300):
        Schedule(number, heard).run(lambda _: None)
    assert set(NEEDED) <= found <= {*NEEDED, *SPARE}
