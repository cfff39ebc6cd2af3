"""How a run, or whatever else starts processes, is told to end before its end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn, TypeVar

import psutil

T = TypeVar("T")

STOPPED = 75
"""The status of a run that was told to end soon, and did, at a checkpoint: it is to be started again (EX_TEMPFAIL)."""
TELLING = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM"}
"""The signals that say so, and what is said of whoever heard one."""
_SHOW_CURSOR = "\x1b[?25h"


class ToldToEnd(BaseException):
    """A signal has said so. It is nobody's mistake, and nobody goes on after it; the text is for a person."""

    def __init__(self, sign: int, way: str = "") -> None:
        words = TELLING[signal.Signals(sign)]
        super().__init__(f"{words}; {way}" if way else words)
        self.status = 128 + sign


@dataclass(slots=True)
class Ending:
    """SIGINT and SIGTERM end it in order; a second one kills all that was started, and waits for nothing.

    `soon` is after the step that is under way, with a checkpoint.
    """

    way: str = ""
    """What goes on with it, as one says after its end."""
    soon: bool = False
    early: bool = False
    """Whether it has ended at a checkpoint that is not its last."""
    farewell: Callable[[ToldToEnd], None] | None = None
    """Called before all is killed, where nothing else is done any more."""
    _told: ToldToEnd | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _working: asyncio.Future[Any] | None = None

    def listen(self) -> None:
        """From now on these signals are heard, and SIGUSR1, which means soon."""
        for sign in TELLING:
            signal.signal(sign, self._hear)
        signal.signal(signal.SIGUSR1, self._hear_soon)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What this work gives, in an event loop of its own. If it is told to end, it is cancelled: a ToldToEnd."""
        try:
            with asyncio.Runner() as runner:
                self._loop = runner.get_loop()
                return runner.run(self._until_told(work))
        except BaseException as error:
            if self._told is not None:
                raise self._told from error
            raise
        finally:
            self._loop = self._working = None

    async def _until_told(self, work: Coroutine[Any, Any, T]) -> T:
        self._working = working = asyncio.ensure_future(work)
        if self._told is not None:
            working.cancel()
        return await working

    def _hear(self, sign: int, _frame: FrameType | None) -> None:
        if self._told is not None:
            end_at_once(self._told, self.farewell)
        self._told = ToldToEnd(sign, self.way)
        if self._loop is None:
            raise self._told
        if self._working is not None:
            # Wakes the loop, which waits for something else.
            self._loop.call_soon_threadsafe(self._working.cancel)

    def _hear_soon(self, _sign: int, _frame: FrameType | None) -> None:
        self.soon = True


def end_at_once(told: ToldToEnd, farewell: Callable[[ToldToEnd], None] | None = None) -> NoReturn:
    """Kill every process that this one has started, and those that they have, say why, and be gone."""
    with suppress(psutil.Error):
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
    with suppress(Exception):
        if farewell is not None:
            farewell(told)
    with suppress(OSError):
        # A live display has hidden the cursor, and nobody is left to show it.
        os.write(2, f"{_SHOW_CURSOR if sys.stdout.isatty() else ''}{told}\n".encode())
    os._exit(told.status)
