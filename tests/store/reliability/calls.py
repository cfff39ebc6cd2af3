"""System calls, as a test sees and answers them: every function of `os` that enters the kernel."""

from __future__ import annotations

import os
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeAlias

import pytest

Call: TypeAlias = Callable[..., Any]
Answer: TypeAlias = Callable[[str, Call, tuple[Any, ...], dict[str, Any]], Any]
"""Takes a call's name, the real function, and its arguments; returns or raises what the call shall."""

CANNOT_FAIL = {"fspath", "strerror", "getpid", "getcwd", "urandom"}
CALLS = {
    name: call
    for name, call in vars(os).items()
    if isinstance(call, types.BuiltinFunctionType) and call.__module__ == "posix" and name not in CANNOT_FAIL
}


class _Thread(threading.local):
    answer: Answer | None = None


_here = _Thread()


def _answered(name: str, real: Call) -> Call:
    @wraps(real)
    def call(*args: Any, **kwargs: Any) -> Any:
        answer = _here.answer
        return real(*args, **kwargs) if answer is None else answer(name, real, args, kwargs)

    return call


@contextmanager
def calls_can_be_answered() -> Iterator[None]:
    """As long as this is open, `answered_by` works."""
    with pytest.MonkeyPatch.context() as patch:
        for name, call in CALLS.items():
            patch.setattr(os, name, _answered(name, call))
        yield


@contextmanager
def answered_by(answer: Answer) -> Iterator[None]:
    """Until the end, every system call of this thread goes to `answer`; those that it makes are real."""

    def once(*call: Any) -> Any:
        _here.answer = None
        try:
            return answer(*call)
        finally:
            _here.answer = once

    before, _here.answer = _here.answer, once
    try:
        yield
    finally:
        _here.answer = before
