"""What fetches stored images where vLLM is given their urls: they are read here, verified, and handed over as pictures.

vLLM lets an environment variable choose what fetches media: `VLLM_MEDIA_CONNECTOR=filmroll` is this.
It serves every endpoint that takes an `image_url`. What is not below the store's place is fetched by
vLLM's own connector under its own rules. vLLM fetches every image of every request, known or not, so
pictures are kept, as many as fit.

Relied on inside vLLM: the registry of media connectors, by name; `MediaConnector` with `fetch_image`
and `fetch_image_async`; `MediaWithBytes`, a picture and the bytes by which vLLM names it where the
request does not; `GracefulHTTPError`, which becomes an answer of its status.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from PIL import Image

from filmroll.errors import FilmrollError, ImageSourceError
from filmroll.materialize.cache import Cache
from filmroll.materialize.watch import Watch
from filmroll.pixels.decode import decode
from filmroll.store import Store

NAME = "filmroll"
"""What `VLLM_MEDIA_CONNECTOR` calls it."""
FILE = "file:"

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


def connect(images: StoredImages) -> None:
    """Have vLLM's registry offer a connector that fetches these, and all else as vLLM's own does."""
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector, MediaWithBytes

    class Connector(MediaConnector):  # type: ignore[misc]
        def fetch_image(self, image_url: str, **options: Any) -> Any:
            with _answerable(image_url):
                if not images.has_place_for(image_url):
                    return super().fetch_image(image_url, **options)
                return _as_vllm(images.read(image_url))

        async def fetch_image_async(self, image_url: str, **options: Any) -> Any:
            with _answerable(image_url):
                if not images.has_place_for(image_url):
                    return await super().fetch_image_async(image_url, **options)
                return _as_vllm(await images.aread(image_url))

    def _as_vllm(stored: Stored) -> Any:
        return MediaWithBytes(stored.picture, stored.data)

    MEDIA_CONNECTOR_REGISTRY.register(NAME)(Connector)


def is_chosen() -> bool:
    """Whether this server's operator wants images fetched by this connector."""
    from vllm import envs

    return bool(envs.VLLM_MEDIA_CONNECTOR == NAME)


def refusal(error: BaseException) -> tuple[FilmrollError, str] | None:
    """What a connector refused, and the url; None for any other error."""
    cause = error.__cause__
    return (cause, error.url) if isinstance(cause, FilmrollError) and hasattr(error, "url") else None


@contextmanager
def _answerable(url: str) -> Iterator[None]:
    """Turn errors into such as vLLM answers with their own status, whatever the endpoint."""
    try:
        yield
    except FilmrollError as error:
        raise _refused(error, url) from error
    except (OSError, RuntimeError, ValueError):
        if not url.startswith(FILE):
            raise
        unread = ImageSourceError(
            "the file at its url is not one that this server reads",
            remedy="Send the url of an image in the store; other files must be images below the path that "
            "--allowed-local-media-path names",
        )
        raise _refused(unread, url) from unread


def _refused(error: FilmrollError, url: str) -> Any:
    from vllm.exceptions import GracefulHTTPError

    refused = GracefulHTTPError(error.wire()["message"], HTTPStatus(error.status))
    refused.url = url
    return refused
