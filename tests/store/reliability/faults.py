"""Ways in which a system call fails, and an answerer that has the n-th call fail so."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.store.reliability.calls import Call

CODES = ("ENOSPC", "EIO", "EMFILE", "EDQUOT", "EROFS", "ESTALE", "EINTR")
AGAIN = {"link": "EEXIST", "mkdir": "EEXIST", "create": "EEXIST", "unlink": "ENOENT", "replace": "ENOENT"}
"""What a file server says to a request that it has carried out, when the answer was lost and it is asked again."""


@dataclass(frozen=True)
class Fault:
    """`code` is an error's name, "repeated", or what becomes of bytes on the way: "short", "nothing", "changed".

    A late one has had its effect and says that it failed; after a lasting one every later call fails
    as well.
    """

    code: str
    when: str = "at once"

    def __str__(self) -> str:
        return f"{self.code} {self.when}"

    def concerns(self, call: str) -> bool:
        if self.code == "repeated":
            return call in AGAIN
        if self.code == "changed":
            return call in ("read", "pread")
        return self.code in CODES or call in ("read", "pread", "write", "pwrite")

    def strike(self, name: str, real: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.code in ("short", "nothing"):
            return _less(real, args, nothing=self.code == "nothing")
        if self.code == "changed":
            data = real(*args, **kwargs)
            return data[:-1] + bytes([data[-1] ^ 1]) if data else data
        if name == "close" or self.when == "late":
            with suppress(OSError):
                done = real(*args, **kwargs)
                if name in ("open", "create"):
                    os.close(done)
        code = getattr(errno, AGAIN[name] if self.code == "repeated" else self.code)
        path = args[0] if isinstance(args[0], str | os.PathLike) else None
        raise OSError(code, os.strerror(code), path)


FAULTS = [
    *(Fault(code, when) for when in ("at once", "late", "lasting") for code in CODES),
    Fault("repeated", "late"),
    Fault("short"),
    Fault("nothing"),
    Fault("changed"),
    Fault("short", "lasting"),
    Fault("nothing", "lasting"),
]


def _less(real: Call, args: tuple[Any, ...], *, nothing: bool) -> Any:
    """A read or write of half of what was asked, or of nothing: the end of the file, a full device."""
    fd, what = args[0], args[1]
    if isinstance(what, int):
        return b"" if nothing else real(fd, max(1, what // 2), *args[2:])
    return 0 if nothing else real(fd, bytes(what)[: max(1, len(what) // 2)], *args[2:])


class Failing:
    """Has the call of that number fail; counts and names all calls."""

    def __init__(self, at: int = -1, fault: Fault = FAULTS[0], *, links: bool = True) -> None:
        self.at, self.fault, self.links = at, fault, links
        self.names: list[str] = []

    def __call__(self, name: str, real: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        number = len(self.names)
        if name == "open" and args[1] & os.O_CREAT:
            name = "create"
        self.names.append(name)
        struck = number == self.at or (self.fault.when == "lasting" and number > self.at >= 0)
        if struck and self.fault.concerns(name):
            return self.fault.strike(name, real, args, kwargs)
        if name == "link" and not self.links:
            raise OSError(errno.EPERM, "this file system has no links")
        if name == "fsync":
            # What reaches a disk is for test_crashes.py; here a sync would only cost time.
            os.fstat(args[0])
            return None
        return real(*args, **kwargs)
