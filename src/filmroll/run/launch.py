"""Processes of a run on this machine: started, waited for, watched, and ended with their starter."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil

from filmroll.errors import RunError
from filmroll.run.directory import RunDirectory

T = TypeVar("T")
_POLL = 0.05
_PATIENCE = 300.0
_LAST_WORDS = 5.0


class Announcement(msgspec.Struct, frozen=True):
    """What a process writes into the run's folder once it can be spoken to."""

    pid: int
    endpoint: str


class Process:
    """One process of the run. Losing it is an error of whatever waits on it."""

    def __init__(self, name: str, run: RunDirectory, child: asyncio.subprocess.Process) -> None:
        self.name = name
        self.run = run
        self._child = child
        self._log = run.logs / f"{name}.log"
        self.exited = asyncio.create_task(child.wait())

    @classmethod
    async def start(cls, name: str, role: str, run: RunDirectory) -> Process:
        _announcement(run, name).unlink(missing_ok=True)
        with (run.logs / f"{name}.log").open("ab") as log:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "filmroll", role, str(run.path), "--name", name,
                stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        return cls(name, run, child)

    async def endpoint(self) -> str:
        """Where the process listens, once it does."""
        file, latest = _announcement(self.run, self.name), time.monotonic() + _PATIENCE
        while not file.exists():
            if time.monotonic() > latest:
                raise RunError(f"process {self.name} is not ready after {_PATIENCE:.0f} s", private=self._last_words())
            await self.watch(asyncio.sleep(_POLL))
        return msgspec.json.decode(file.read_bytes(), type=Announcement).endpoint

    async def watch(self, work: Awaitable[T]) -> T:
        """The result of `work`, or a RunError as soon as the process is gone."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self.exited}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            task.cancel()
        raise RunError(
            f"process {self.name} ended with status {self.exited.result()}",
            remedy=f"`filmroll train --resume {self.run.path}` goes on from the last checkpoint",
            private=f"{self._last_words()}; log: {self._log}",
        )

    def _last_words(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return f"it last said: {lines[-1].strip()[:500]}" if lines else "it said nothing"

    def memory(self) -> int:
        """Resident bytes, 0 once it is gone."""
        try:
            return int(psutil.Process(self._child.pid).memory_info().rss)
        except psutil.Error:
            return 0

    async def stop(self, patience: float = 10.0) -> None:
        """Close its input, which tells it to end; kill it if it does not."""
        if self._child.stdin is not None:
            self._child.stdin.close()
        try:
            async with asyncio.timeout(patience):
                await asyncio.shield(self.exited)
        except TimeoutError:
            self._child.kill()
            await self.exited


def announce(run: RunDirectory, name: str, endpoint: str) -> None:
    """Say where this process listens, to this user alone: an endpoint may hold a key.

    It is written under another name first, so that nobody reads half of it.
    """
    file = _announcement(run, name)
    draft = file.with_suffix(".partial")
    draft.touch(mode=0o600)
    draft.write_bytes(msgspec.json.encode(Announcement(os.getpid(), endpoint)))
    draft.rename(file)


def end_with_starter() -> None:
    """End this process when whoever started it closes our input, or dies: a killed run leaves none behind."""

    def wait() -> None:
        while sys.stdin.buffer.read(1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_LAST_WORDS)
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="starter").start()


def _announcement(run: RunDirectory, name: str) -> Path:
    return run.processes / f"{name}.json"
