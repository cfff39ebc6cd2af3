"""Stored images by their urls: read here, verified, and handed over as pictures.

vLLM fetches every image of every request, known or not, so pictures are kept, as many as fit.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote

from PIL import Image

from filmroll.materialize.cache import Cache
from filmroll.materialize.watch import Watch
from filmroll.pixels.decode import decode
from filmroll.store import Store

PIXEL_BYTES = 4
"""Of a PIL image in memory, also where it has three channels."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Stored:
    """A stored image as vLLM takes it: the picture, and the bytes that it was made of."""

    picture: Image.Image
    data: bytes

    @property
    def nbytes(self) -> int:
        return PIXEL_BYTES * self.picture.width * self.picture.height + len(self.data)


class StoredImages:
    """A store's images by their urls, each read, verified and decoded once while it fits into `cache_bytes`."""

    def __init__(self, store: Store, *, cache_bytes: int, readers: int, watch: Watch | None = None) -> None:
        self._store = store
        self._watch = watch or Watch()
        self._root = unquote(store.shelf.uri(""))
        self._cache: Cache[str, Stored] = Cache(cache_bytes)
        self._cache.watch = self._watch
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="filmroll-connector")

    def has_place_for(self, url: Any) -> bool:
        """Whether the url is below the store's place: then nobody else reads what lies there."""
        return isinstance(url, str) and unquote(url).startswith(self._root)

    def read(self, url: str) -> Stored:
        """The image at this url, whose bytes have the digest in its name; else a FilmrollError."""
        return self._cache.get(url, partial(self._develop, url))

    async def aread(self, url: str) -> Stored:
        """`read`, off the event loop."""
        begin = partial(self._cache.begin, url, partial(self._develop, url))
        begun = await asyncio.get_running_loop().run_in_executor(self._pool, begin)
        # Others may be waiting for the same image: one that leaves must not end it for them.
        return await asyncio.shield(asyncio.wrap_future(begun))

    def _develop(self, url: str) -> Stored:
        begun = time.perf_counter()
        data = self._store.read_at(url)
        read = time.perf_counter()
        self._watch.read(len(data), read - begun)
        picture = Image.fromarray(decode(data, max_pixels=self._store.limits.max_pixels))
        self._watch.decoded(time.perf_counter() - read)
        return Stored(picture, data)
