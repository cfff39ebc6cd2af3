"""How often a request is tried again, and how long after."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Iterator

from filmroll.errors import EngineUnavailableError

MOST_TRIES = 4
"""How often a request may reach a server and fail there: it may be the request that brings servers down."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
LONGEST_AFTER_S = 30.0
"""The most that a server's Retry-After is heeded."""


class Failed(Exception):  # noqa: N818 - a try failed; the error that people see is inside
    """One try came to nothing, and another may do better.

    `reached` says whether the request may have got to an engine, `gone` whether the server has to be
    looked at before it is used again, `after` in how many seconds it wants to be asked again.
    """

    def __init__(
        self, error: EngineUnavailableError, *, reached: bool = False, gone: bool = False, after: float = 0.0
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.reached, self.gone, self.after = reached, gone, after


class Tries:
    """What has become of one request so far. `patience` is for how many seconds it waits for a server to be there."""

    def __init__(self, patience: float) -> None:
        self.last: EngineUnavailableError | None = None
        self._patience = self._left = patience
        self._reached = 0
        self._pauses = growing()

    def failed(self, failed: Failed) -> None:
        """Count a failure; raises its error if there is to be no other try."""
        self.last = failed.error
        if failed.reached:
            self._reached += 1
            self._left = self._patience
        if self._reached >= MOST_TRIES or self._left <= 0:
            raise failed.error

    async def pause(self, after: float) -> None:
        """Wait before the next try: longer each time, and as long as the server asked for."""
        seconds = max(next(self._pauses), min(after, LONGEST_AFTER_S) * random.uniform(1, 1.2))
        await asyncio.sleep(seconds)
        self._left -= seconds

    async def wait(self, something: Awaitable[object]) -> bool:
        """Wait for it as long as patience lasts; whether it happened."""
        started = time.monotonic()
        try:
            await asyncio.wait_for(something, self._left)
        except TimeoutError:
            return False
        finally:
            self._left -= time.monotonic() - started
        return True


def growing() -> Iterator[float]:
    """Pauses in seconds, each about twice the one before, none the same for two who wait."""
    pause = FIRST_PAUSE_S
    while True:
        yield pause * random.uniform(0.5, 1)
        pause = min(2 * pause, LONGEST_PAUSE_S)
