"""A process that was started here: watched, quoted when it dies, and ended with all that it has started itself."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import psutil

from filmroll.durable import FULL_STATUS
from filmroll.errors import DiskFullError, FilmrollError, RunError
from filmroll.run.processes import leash

T = TypeVar("T")
WORDS = 500
"""Characters of a last line that are quoted."""


class Watched(ABC):
    """Something that runs under a name. Losing it is an error of whatever waits on it."""

    def __init__(self, name: str, exited: asyncio.Future[int]) -> None:
        self.name = name
        self.exited = exited

    async def watch(self, work: Awaitable[T]) -> T:
        """The result of `work`, or what has been `lost` as soon as the process is gone."""
        task = await race(work, self.exited)
        if not task.done():
            raise self.lost()
        return task.result()

    def lost(self, circumstance: str = "") -> FilmrollError:
        """What to raise once it has ended: its status and its last words.

        Where it has found a disk full, that is a DiskFullError: started again, it would find the same.
        """
        status = self.exited.result()
        if status == FULL_STATUS:
            # Its last words may have found no room either.
            return DiskFullError(
                f"process {self.name} ended because a disk is full", remedy="Make room there", private=self.last_words()
            )
        problem = f"process {self.name} ended with status {status}{circumstance}"
        return RunError(problem, private=self.last_words())

    @abstractmethod
    def last_words(self) -> str:
        """What it last said, if anything."""

    @abstractmethod
    def memory(self) -> int:
        """Resident bytes of it and of the processes that it has started, 0 once it is gone."""

    @abstractmethod
    async def stop(self) -> None:
        """Ask it to end; kill it if it does not."""


class Child(Watched):
    """A child process, which leads a group of its own.

    `last_line` tells the last line that it has printed, or nothing. `leash` is the file descriptor whose
    closing tells it to end. It must have no pipe of asyncio's: with one, its end is noticed only when
    nobody holds the pipe any longer, and that may be what it has left behind.
    """

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        last_line: Callable[[], str],
        leash: int | None = None,
    ) -> None:
        super().__init__(name, asyncio.create_task(self._exit()))
        self.pid = process.pid
        self._process = process
        self._last_line = last_line
        self._leash = leash

    async def _exit(self) -> int:
        """Its status, once it has ended; what it had started and left behind ends with it."""
        status = await self._process.wait()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        return status

    def last_words(self) -> str:
        line = self._last_line().strip()
        return f"it last said: {line[:WORDS]}" if line else "it said nothing"

    def memory(self) -> int:
        try:
            family = psutil.Process(self.pid)
            return sum(_resident(one) for one in (family, *family.children(recursive=True)))
        except psutil.Error:
            return 0

    async def stop(self, patience: float = 10.0) -> None:
        if self._leash is not None:
            os.close(self._leash)
            self._leash = None
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await asyncio.shield(self.exited)
        finally:
            # It had its time, or whoever waits for it is to end at once.
            if not self.exited.done():
                with suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                await self.exited


def leashed(command: Sequence[str]) -> list[str]:
    """The same command, which is told to end when this process dies."""
    return [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), *command]


async def race(work: Awaitable[T], *ends: asyncio.Future[Any]) -> asyncio.Future[T]:
    """`work`, which is done, unless one of `ends` was first: then it is cancelled."""
    task = asyncio.ensure_future(work)
    # Where an end was first, or we are cancelled, its error is nobody's: nobody shall miss it.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.wait({task, *ends}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not task.done():
            task.cancel()
    return task


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
