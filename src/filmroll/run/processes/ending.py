"""How a run is told to end before its end."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass(slots=True)
class Ending:
    """SIGTERM ends it at once; `soon` after the step that is under way, with a checkpoint."""

    soon: bool = False
    now: bool = False
    early: bool = False
    """Whether it has ended at a checkpoint that is not its last."""

    def end(self, work: asyncio.Future[Any]) -> None:
        """End what is being done at once."""
        self.now = True
        work.cancel()

    def listen(self) -> None:
        """From now on SIGUSR1 means soon."""

        def hear(_signal: int, _frame: FrameType | None) -> None:
            self.soon = True

        signal.signal(signal.SIGUSR1, hear)
