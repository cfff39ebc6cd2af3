"""Every call of every operation fails in every way: the result is right or a typed error, and asking again succeeds.

The calls are counted as they are made, so that a new one is tried without a word here.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from filmroll.errors import FilmrollError, ImageDamagedError, StoreUnavailableError
from filmroll.store import Store, open_store
from filmroll.store.keys import QUARANTINE, TEMPORARY, TRASH, named_object
from tests.store.conftest import Show
from tests.store.effort import effort
from tests.store.reliability.calls import answered_by, calls_can_be_answered
from tests.store.reliability.faults import CODES, FAULTS, Failing, Fault
from tests.store.reliability.operations import (
    KEY,
    ONE,
    OPERATIONS,
    OTHER,
    Operation,
    misplaced,
    now,
    put,
    read,
    ref_of,
)

pytestmark = pytest.mark.reliability


@pytest.fixture(autouse=True)
def seen_calls() -> Iterator[None]:
    with calls_can_be_answered():
        yield


class Trial:
    """One operation, again and again from the same state."""

    def __init__(self, folder: Path, operation: Operation) -> None:
        self.operation = operation
        self.root = folder / "above" / "store"
        self.template = folder / "template"
        self.template.mkdir()
        if not operation.empty:
            store = open_store(self.root)
            store.write(OTHER)
            operation.before(store)
            shutil.copytree(folder / "above", self.template / "above")

    def afresh(self) -> Store:
        shutil.rmtree(self.root.parent, ignore_errors=True)
        shutil.copytree(self.template, self.root.parent.parent, dirs_exist_ok=True)
        store = open_store(self.root)
        self.operation.known(store)
        return store

    def calls(self) -> list[str]:
        store = self.afresh()
        with answered_by(calls := Failing(links=self.operation.links)):
            assert self.operation.run(store) == self.operation.gives
        self.check(may_leave_drafts=False)
        return calls.names

    def fail(self, at: int, fault: Fault) -> str:
        store = self.afresh()
        before = open_files()
        with answered_by(failing := Failing(at, fault, links=self.operation.links)):
            try:
                assert self.operation.run(store) == self.operation.gives
                said = "right"
            except FilmrollError as error:
                said = type(error).__name__
                self.check_error(error, fault)
        assert open_files() == before
        self.check(
            may_leave_drafts=self.operation.act is now or failing.names[at] == "unlink" or fault.when == "lasting"
        )
        with answered_by(Failing(links=self.operation.links)):
            assert self.operation.run(store) == self.operation.gives
        self.check(may_leave_drafts=True)
        if self.operation.act is put:
            assert open_store(self.root).read(ref_of(store)) == ONE.data
        return said

    def check_error(self, error: FilmrollError, fault: Fault) -> None:
        # Where the file seems to end early, damage is all that a reader can say.
        expected = (StoreUnavailableError, ImageDamagedError) if fault.code == "nothing" else StoreUnavailableError
        assert isinstance(error, expected)
        assert str(self.root) not in str(error.wire())
        if fault.code in CODES:
            assert os.strerror(getattr(errno, fault.code)) in error.wire()["message"]

    def check(self, *, may_leave_drafts: bool) -> None:
        """Nothing half-visible, nothing lost, nothing good set aside."""
        for path in self.root.rglob("*"):
            key = path.relative_to(self.root).as_posix()
            if path.is_dir():
                continue
            if key.startswith(f"{TEMPORARY}/"):
                assert may_leave_drafts
            elif key.startswith(f"{QUARANTINE}/"):
                good = hashlib.sha256(path.read_bytes()).hexdigest() == path.name.partition(".")[0]
                assert self.operation.before is misplaced if good else self.operation.damaged
            elif key.startswith(f"{TRASH}/") or named_object(key):
                whole = hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
                assert whole or (self.operation.damaged and key == KEY)
            else:
                raise AssertionError(key)
        for kept in [OTHER] * (not self.operation.empty) + [ONE] * self.operation.kept:
            reader = open_store(self.root)
            assert reader.read(ref_of(reader, kept)) == kept.data


def open_files() -> set[str]:
    # One more is there while this is asked: the folder that is listed.
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def few(choices: list[tuple[int, Fault]]) -> list[tuple[int, Fault]]:
    """Each call with a few of the errors in turn, and with all else that may befall it."""
    errors = [choice for choice in choices if choice[1].code in CODES]
    return errors[:: effort(17, 1)] + [choice for choice in choices if choice[1].code not in CODES]


STALE_IS_RETRIED = {"put into no folder", "put first", "create", "read", "read an image on its way out"}
"""What was open here was replaced or removed by another host."""


CHANGE_IS_SEEN = {"read", "read an image on its way out"}
"""Bytes that were changed on their way here are not what lies there."""


def harmless(call: str, fault: Fault, operation: Operation) -> bool:
    """Whether there is a way around it, which is to be taken."""
    if fault.when == "lasting":
        return False
    if fault.code == "ESTALE" and fault.when == "at once" and operation.name in STALE_IS_RETRIED:
        return True
    # A new file that is there already might be another's; all else has been done if it was asked twice.
    repeated = fault.code == "repeated" and call != "create"
    looked = operation.act is read and (call == "close" or fault.code in ("short", "changed"))
    return repeated or looked or (operation.act is put and call == "unlink")


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name.replace(" ", "-"))
def test_any_call_may_fail_in_any_way(tmp_path: Path, operation: Operation, show: Show) -> None:
    trial = Trial(tmp_path, operation)
    calls = trial.calls()
    faults = [fault for fault in FAULTS if fault.code != "changed" or operation.name in CHANGE_IS_SEEN]
    tries = [(at, fault) for at, call in enumerate(calls) for fault in faults if fault.concerns(call)]
    for at, fault in few(tries):
        said = trial.fail(at, fault)
        assert said == "right" or not harmless(calls[at], fault, operation)
    show("faults", "typed error or right, retry right", operations=1, calls=len(calls), faults=len(few(tries)))
