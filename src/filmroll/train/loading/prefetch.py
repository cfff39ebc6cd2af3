"""A step's images, made by threads while the model is at others: in order, and a bounded amount ahead."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from filmroll.materialize.sheet import Picture
from filmroll.wire.descriptor import ImageDescriptor

Identity = tuple[str, str]


@dataclass(slots=True)
class _Held:
    """An image that is made, or being made, and the last micro-batch that it was asked for by."""

    made: Future[Picture]
    nbytes: int
    last: int


class Prefetch:
    """Asks for the images of micro-batches before their turn, and keeps each until no turn is left that asked.

    `make` is called once for each distinct image that is held, and may find it in a cache. What fails is not
    told here: whoever then loads the image meets the error, in the micro-batch that it belongs to.

    `limit` bounds the bytes of the images that are there, those of the micro-batch at hand among them. Those have
    to be there together: where they are more than that, nothing is made ahead, and they go through alone.
    """

    def __init__(
        self,
        make: Callable[[ImageDescriptor], Picture],
        weigh: Callable[[ImageDescriptor], int],
        wanted: Sequence[Sequence[ImageDescriptor]],
        *,
        limit: int,
        threads: int,
    ) -> None:
        self._make = make
        self._weigh = weigh
        self._limit = limit
        self._wanted = [{one.identity: one for one in descriptors} for descriptors in wanted]
        self._coming = deque((turn, one) for turn, distinct in enumerate(self._wanted) for one in distinct.values())
        self._held: dict[Identity, _Held] = {}
        self._nbytes = 0
        self._pool = ThreadPoolExecutor(threads, "filmroll-images")

    def reach(self, turn: int) -> float:
        """Have all images of this micro-batch, as far as they can be had, and say how many seconds it took.

        Those of the ones before it are let go, and later ones are begun.
        """
        began = time.perf_counter()
        self._held = {identity: one for identity, one in self._held.items() if one.last >= turn}
        self._nbytes = sum(one.nbytes for one in self._held.values())
        while self._coming and (self._coming[0][0] <= turn or self._fits(self._coming[0][1])):
            self._ask(*self._coming.popleft())
        wait([self._held[identity].made for identity in self._wanted[turn]])
        return time.perf_counter() - began

    def close(self) -> None:
        """What has not begun is left out, and no thread stays."""
        self._pool.shutdown(cancel_futures=True)
        self._held.clear()

    def _fits(self, descriptor: ImageDescriptor) -> bool:
        return descriptor.identity in self._held or self._nbytes + self._weigh(descriptor) <= self._limit

    def _ask(self, turn: int, descriptor: ImageDescriptor) -> None:
        held = self._held.get(descriptor.identity)
        if held is not None:
            held.last = turn
            return
        nbytes = self._weigh(descriptor)
        self._held[descriptor.identity] = _Held(self._pool.submit(self._make, descriptor), nbytes, turn)
        self._nbytes += nbytes
