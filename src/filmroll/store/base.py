"""What every store is: put an image once, get a reference; read a reference, get those bytes or an error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import anyio.to_thread

from filmroll.image import ImageRef
from filmroll.store.ingest import Canonical, Limits, Source, canonical


class Store(ABC):
    """A content-addressed store of canonical images.

    Thread-safe; any number of processes may use the same place at once.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()

    def put(self, source: Source) -> ImageRef:
        """Make the image canonical, write it if it is new, and say where it is."""
        return self.write(canonical(source, self.limits))

    def put_many(self, sources: Sequence[Source]) -> list[ImageRef]:
        return [self.put(source) for source in sources]

    async def aput(self, source: Source) -> ImageRef:
        """`put`, off the event loop."""
        return await anyio.to_thread.run_sync(self.put, source)

    async def aread(self, ref: ImageRef) -> bytes:
        """`read`, off the event loop."""
        return await anyio.to_thread.run_sync(self.read, ref)

    @abstractmethod
    def write(self, image: Canonical) -> ImageRef:
        """Keep canonical bytes under their digest; once this returns, a crash loses nothing."""

    @abstractmethod
    def read(self, ref: ImageRef) -> bytes:
        """The bytes whose digest and length the reference names: never others, never from elsewhere."""
