"""A gate: so much may be inside at once, and whoever does not fit waits in order of arrival."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class _Ticket:
    """What somebody brings along, each thing with its weight."""

    things: Mapping[Hashable, int]
    called: Future[None] = field(default_factory=Future)
    inside: bool = False


class Gate:
    """Thread-safe, and of no event loop in particular.

    A thing that several bring along weighs once. What weighs more than the limit passes when nothing
    else is inside: it may be slow, it is not refused.
    """

    def __init__(self, limit: int, on_change: Callable[[int, int], None] = lambda _weight, _waiting: None) -> None:
        self.limit = limit
        self._on_change = on_change
        self._lock = threading.Lock()
        self._waiting: deque[_Ticket] = deque()
        self._things: dict[Hashable, list[int]] = {}
        """How often each is inside, and its weight."""
        self._weight = 0

    @asynccontextmanager
    async def passed(self, things: Mapping[Hashable, int]) -> AsyncIterator[None]:
        """Inside for the block. A call that is cancelled while it waits has never been there."""
        ticket = _Ticket(things)
        with self._lock:
            self._waiting.append(ticket)
        try:
            self._call()
            await asyncio.wrap_future(ticket.called)
            yield
        finally:
            self._leave(ticket)
            self._call()

    def _call(self) -> None:
        """Let in whoever is next, as long as there is room."""
        called = []
        with self._lock:
            while self._waiting and self._fits(self._waiting[0]):
                ticket = self._waiting.popleft()
                ticket.inside = True
                for thing, weight in ticket.things.items():
                    self._add(thing, weight)
                called.append(ticket)
            self._on_change(self._weight, len(self._waiting))
        for ticket in called:
            with suppress(InvalidStateError):
                ticket.called.set_result(None)

    def _fits(self, ticket: _Ticket) -> bool:
        more = sum(weight for thing, weight in ticket.things.items() if thing not in self._things)
        return not more or not self._things or self._weight + more <= self.limit

    def _add(self, thing: Hashable, weight: int) -> None:
        if thing in self._things:
            self._things[thing][0] += 1
        else:
            self._things[thing] = [1, weight]
            self._weight += weight

    def _leave(self, ticket: _Ticket) -> None:
        with self._lock:
            if not ticket.inside:
                self._waiting.remove(ticket)
                return
            for thing in ticket.things:
                self._things[thing][0] -= 1
                if not self._things[thing][0]:
                    self._weight -= self._things.pop(thing)[1]
