"""What `--additional-config '{"filmroll": {...}}'` says: where the images lie, and how much may be kept and read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from filmroll.engine.images.resolver import Bounds
from filmroll.errors import ConfigError
from filmroll.families import Family
from filmroll.materialize.features import TTL_S, Features
from filmroll.materialize.materializer import CACHE_BYTES
from filmroll.store import Limits, Store, open_store
from filmroll.store.cache import CACHE_BYTES as STORE_CACHE_BYTES

EXAMPLE = """--additional-config '{"filmroll": {"store": "/path/of/the/images"}}'"""

Bytes = Annotated[int, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]

_LIMITS = Limits()
_BOUNDS = Bounds()


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where images lie and what may be spent on them; without a store, references are refused."""

    store: str | None = None
    """A folder, or a bucket's URL."""
    store_cache: str | None = None
    """A local folder that keeps what is read from afar."""
    store_cache_bytes: Bytes = STORE_CACHE_BYTES
    cache_bytes: Bytes = CACHE_BYTES
    """Decoded images kept beside vLLM's own cache."""
    features: str | None = None
    """A folder for processed images, so that another process need not decode them again."""
    features_ttl_s: Annotated[float, msgspec.Meta(gt=0)] = TTL_S
    """How long a file in there is kept that nobody reads."""
    readers: Annotated[int, msgspec.Meta(ge=1, le=256)] = _BOUNDS.readers
    """Threads that turn references into pixels."""
    in_flight: Count = _BOUNDS.in_flight
    """Requests whose images are read at the same time; others wait in order."""
    under_way: Count = _BOUNDS.under_way
    """Requests with references that may be there at all; more get a 503."""
    pixel_bytes: Count = _BOUNDS.pixel_bytes
    """Pixels of the requests under way; more wait."""
    weights: str | None = None
    """A folder in which a trainer writes versions of the weights; without it they are never updated."""
    only_references: bool = False
    """Whether the generate endpoint takes images as references and in no other way."""
    max_bytes: Count = _LIMITS.max_bytes
    max_pixels: Count = _LIMITS.max_pixels
    max_side: Count = _LIMITS.max_side

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.readers, self.in_flight, self.under_way, self.pixel_bytes)

    def open_features(self, family: Family) -> Features | None:
        return None if self.features is None else Features(Path(self.features), family, ttl_s=self.features_ttl_s)

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
