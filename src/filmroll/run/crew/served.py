"""Servers that somebody else has started, where a run would have engines of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TypeVar

from filmroll.run.crew.engines import Tell
from filmroll.run.members.switchboard import Connect

T = TypeVar("T")


class Served:
    """Asked as a run's own engines are, but neither watched nor started again."""

    restarts = 0

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = list(urls)

    async def open(self, tell: Tell) -> None:
        await tell(Connect(self._urls))

    async def watch(self, work: Awaitable[T]) -> T:
        return await work

    async def update(self, version: int) -> None:
        """They keep the weights that they have."""

    def memory(self) -> dict[str, int]:
        return {}
