"""Doing the same to many objects of a store at once: over a network a call is mostly waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")

THREADS = 8


def together(act: Callable[[Thing], Result], things: Iterable[Thing], threads: int = THREADS) -> Iterator[Result]:
    """What `act` makes of each thing, in their order; the first error ends it.

    Things are taken only a little ahead, so that neither they nor the results need fit into memory.
    One thread is the caller's own.
    """
    if threads == 1:
        yield from map(act, things)
        return
    running: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for thing in things:
                running.append(pool.submit(act, thing))
                if len(running) >= 2 * threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
