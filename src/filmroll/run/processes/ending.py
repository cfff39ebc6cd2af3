"""How a run is told to end before its end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from dataclasses import dataclass
from types import FrameType
from typing import Any

from filmroll.errors import RunError

STOPPED = 75
"""The status of a run that was told to end soon, and did, at a checkpoint: it is to be started again (EX_TEMPFAIL)."""


@dataclass(slots=True)
class Ending:
    """SIGTERM ends it at once; `soon` after the step that is under way, with a checkpoint."""

    soon: bool = False
    now: bool = False
    early: bool = False
    """Whether it has ended at a checkpoint that is not its last."""

    async def of(self, work: Coroutine[Any, Any, bool]) -> None:
        """Do this work, which says whether it has reached its end, until that or SIGTERM."""
        working = asyncio.ensure_future(work)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._end, working)
        try:
            self.early = not await working
        except asyncio.CancelledError:
            if not self.now:
                raise
            raise RunError("the run was ended by SIGTERM") from None

    def _end(self, work: asyncio.Future[bool]) -> None:
        """End what is being done at once."""
        self.now = True
        work.cancel()

    def listen(self) -> None:
        """From now on SIGUSR1 means soon."""

        def hear(_signal: int, _frame: FrameType | None) -> None:
            self.soon = True

        signal.signal(signal.SIGUSR1, hear)
