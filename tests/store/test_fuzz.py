"""Damaged images crash nothing, hang nothing, and raise nothing but errors of the tree."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

from tests.store import fuzz
from tests.store.conftest import Show
from tests.store.effort import effort


@pytest.mark.reliability
def test_fuzz(show: Show) -> None:
    count = effort(6_000, 1_000_000)
    found = fuzz.fuzz(count)
    assert found.failures == {}
    assert sum(found.ends.values()) == count
    assert min(found.ends.values()) > count / 50
    show(
        "fuzz",
        "0 crashes, 0 hangs over 2 s, 0 untyped exceptions",
        damaged_images=count,
        of_them_kept=found.ends["kept"],
    )


# The fuzzer itself


def crashes(number: int) -> bytes:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return b""


def loops(number: int) -> bytes:
    return b"loop" if number == 3 else b""


def loop_or_refuse(data: bytes) -> str:
    while data == b"loop":
        pass
    raise ValueError("untyped")


@pytest.mark.parametrize(("case", "attempt"), [(crashes, None), (loops, loop_or_refuse)])
def test_the_fuzzer_finds_what_it_looks_for(case: object, attempt: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that ends its process is named, and those after it are tried all the same."""
    monkeypatch.setattr(fuzz, "_CONTEXT", multiprocessing.get_context("fork"))
    monkeypatch.setattr(fuzz, "PATIENCE", 0.2)
    monkeypatch.setattr(fuzz, "case", case)
    if attempt:
        monkeypatch.setattr(fuzz, "attempt", attempt)
    found = fuzz.fuzz(8, processes=2)
    if attempt:
        assert found.failures.pop(3) == "takes longer than 0.2 s"
        assert found.failures == dict.fromkeys((0, 1, 2, 4, 5, 6, 7), "ValueError('untyped')")
    else:
        assert found.failures == {3: f"ends the process with {-signal.SIGKILL}"}
        assert found.ends == {"refused": 4}
