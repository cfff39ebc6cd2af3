"""Processes of a run on this machine: started, waited for, watched, and ended with their starter."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec

from filmroll.durable import room_for
from filmroll.errors import RunError
from filmroll.run.directory import RunDirectory
from filmroll.run.processes.child import Child
from filmroll.run.processes.variables import launched_variables

_POLL = 0.05
_PATIENCE = 300.0
"""Seconds in which a process has to be ready."""
_LAST_WORDS = 5.0


class Announcement(msgspec.Struct, frozen=True):
    """What a process writes into the run's folder once it can be spoken to."""

    pid: int
    endpoint: str


class Process(Child):
    """One process of the run; what it prints is in a log of its own."""

    def __init__(
        self, name: str, run: RunDirectory, process: asyncio.subprocess.Process, leash: int, begun: int
    ) -> None:
        self.run = run
        self.log = _log(run, name)
        self._begun = begun
        self.patience = _PATIENCE
        super().__init__(name, process, self._last_line, leash)

    @classmethod
    async def start(
        cls, name: str, command: Sequence[str], run: RunDirectory, environment: Mapping[str, str] | None = None
    ) -> Self:
        """Start a command; its standard input ends when this process does."""
        _announcement(run, name).unlink(missing_ok=True)
        theirs, leash = os.pipe()
        with os.fdopen(theirs) as input_, _log(run, name).open("ab") as log:
            begun = log.tell()
            process = await asyncio.create_subprocess_exec(
                *command, stdin=input_, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **launched_variables(run, run.config()), **(environment or {})},
            )  # fmt: skip
        return cls(name, run, process, leash, begun)

    async def endpoint(self) -> str:
        """Where the process listens, once it does."""
        latest = time.monotonic() + self.patience
        while (endpoint := announced(self.run, self.name)) is None:
            if time.monotonic() > latest:
                raise RunError(
                    f"process {self.name} is not ready after {self.patience:.0f} s", private=self.last_words()
                )
            await self.watch(asyncio.sleep(_POLL))
        return endpoint

    def last_words(self) -> str:
        return f"{super().last_words()}; log: {self.log}"

    def said(self) -> str:
        """All that it has printed; those who were started under its name before have printed into the same log."""
        with self.log.open("rb") as log:
            log.seek(self._begun)
            return log.read().decode(errors="replace")

    def _last_line(self) -> str:
        lines = [line for line in self.said().splitlines() if line.strip()]
        return lines[-1] if lines else ""


def role_command(role: str, run: RunDirectory, name: str) -> list[str]:
    """What starts a process of this role."""
    return [sys.executable, "-m", "filmroll", "role", role, str(run.path), "--name", name]


def announce(run: RunDirectory, name: str, endpoint: str, pid: int | None = None) -> None:
    """Say where this process listens, or that of `pid`, to this user alone: an endpoint may hold a key.

    It is written under another name first, so that nobody reads half of it.
    """
    file = _announcement(run, name)
    draft = file.with_suffix(".partial")
    with room_for("saying where this process listens", run.processes):
        draft.touch(mode=0o600)
        draft.write_bytes(msgspec.json.encode(Announcement(pid or os.getpid(), endpoint)))
        draft.rename(file)


def announced(run: RunDirectory, name: str) -> str | None:
    """Where that process listens, if it has said so."""
    try:
        said = _announcement(run, name).read_bytes()
    except FileNotFoundError:
        return None
    return msgspec.json.decode(said, type=Announcement).endpoint


def withdraw(run: RunDirectory, name: str, endpoint: str) -> None:
    """Say that nobody listens there any more, unless somebody else does by now."""
    if announced(run, name) == endpoint:
        _announcement(run, name).unlink(missing_ok=True)


def end_with_starter() -> None:
    """End this process when whoever started it closes our input, or dies: a killed run leaves none behind."""

    def wait() -> None:
        # Not through sys.stdin: a reader that waits there makes an interpreter that ends abort instead.
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_LAST_WORDS)
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="starter").start()


def _announcement(run: RunDirectory, name: str) -> Path:
    return run.processes / f"{name}.json"


def _log(run: RunDirectory, name: str) -> Path:
    return run.logs / f"{name}.log"
