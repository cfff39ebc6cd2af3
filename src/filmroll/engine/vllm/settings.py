"""What `--additional-config '{"filmroll": {...}}'` says: where the images lie, and how much may be kept and read."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from filmroll.errors import ConfigError
from filmroll.materialize.materializer import CACHE_BYTES
from filmroll.store import Limits, Store, open_store
from filmroll.store.cache import CACHE_BYTES as STORE_CACHE_BYTES

EXAMPLE = """--additional-config '{"filmroll": {"store": "/path/of/the/images"}}'"""

Bytes = Annotated[int, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]

_LIMITS = Limits()


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where images lie and what may be spent on them; without a store, references are refused."""

    store: str | None = None
    """A folder, or a bucket's URL."""
    store_cache: str | None = None
    """A local folder that keeps what is read from afar."""
    store_cache_bytes: Bytes = STORE_CACHE_BYTES
    cache_bytes: Bytes = CACHE_BYTES
    """Decoded images kept beside vLLM's own cache."""
    readers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4
    """Threads that turn references into pixels."""
    weights: str | None = None
    """A folder in which a trainer writes versions of the weights; without it they are never updated."""
    only_references: bool = False
    """Whether the generate endpoint takes images as references and in no other way."""
    max_bytes: Count = _LIMITS.max_bytes
    max_pixels: Count = _LIMITS.max_pixels
    max_side: Count = _LIMITS.max_side

    def open_store(self) -> Store | None:
        if self.store is None:
            return None
        limits = Limits(max_bytes=self.max_bytes, max_pixels=self.max_pixels, max_side=self.max_side)
        return open_store(self.store, limits, cache=self.store_cache, cache_bytes=self.store_cache_bytes)


def read_settings(values: Any) -> Settings:
    """The settings in vLLM's additional configuration; ConfigError for a key or value that is none."""
    try:
        return msgspec.convert({} if values is None else values, Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"vLLM's additional configuration, under filmroll: {error}", remedy=f"A whole one: {EXAMPLE}"
        ) from None
