"""What a step needs is got ready while steps before it train."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def played_ahead(
    play: Callable[[int], Awaitable[T]], first: int, end: int, ahead: int
) -> AsyncGenerator[tuple[int, T, float], None]:
    """Each step's number, what was played for it, and when it began; so many steps `ahead` are played meanwhile."""
    coming: deque[asyncio.Task[T]] = deque()
    try:
        for step in range(first, end):
            started = time.perf_counter()
            played = await (coming.popleft() if coming else play(step))
            while len(coming) < min(ahead, end - step - 1):
                coming.append(asyncio.ensure_future(play(step + 1 + len(coming))))
            yield step, played, started
    finally:
        for one in coming:
            one.cancel()
        if coming:
            await asyncio.wait(coming)
