"""Where images are kept: made canonical, written once under their sha256, read only if they still match it.

Imports only image and errors. Writers put, readers read; a reference is all that passes between them.
"""

from __future__ import annotations

import os
import re

from filmroll.errors import ConfigError, ImageSourceError
from filmroll.store.cache import CACHE_BYTES, ReadCache
from filmroll.store.ingest.canonical import Limits
from filmroll.store.ingest.http_sources import HttpSources
from filmroll.store.ingest.sources import path_of
from filmroll.store.nowhere import URL as INLINE_URL
from filmroll.store.nowhere import InlineStore, Nowhere
from filmroll.store.shelves.buckets import SCHEMES
from filmroll.store.shelves.files import FileShelf
from filmroll.store.shelves.shelf import Shelf
from filmroll.store.store import Store
from filmroll.store.upkeep.leases import Lease
from filmroll.store.upkeep.manifests import Manifest

__all__ = ["HttpSources", "Lease", "Limits", "Manifest", "Store", "open_store"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://)?")


def open_store(
    url: str | os.PathLike[str],
    limits: Limits | None = None,
    *,
    http: HttpSources | None = None,
    cache: str | os.PathLike[str] | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> Store:
    """The store at a folder's path (`~` is expanded), a file: URI, or a bucket's URL such as s3://bucket/prefix.

    Google's buckets are gs://, Azure's containers az://; memory://name lasts as long as the process.
    inline: is no place at all, its references hold their images.
    Credentials, region and endpoint come from the environment. Anything else is a ConfigError.

    With `http`, images are put from http(s) URLs too; without it, nothing is ever fetched. With
    `cache`, a folder on a local disk, what is read is kept there, up to that many bytes.
    """
    if url == INLINE_URL:
        if cache is not None:
            raise ConfigError("an inline store reads from nowhere and has nothing to cache", remedy="Leave cache out")
        return InlineStore(Nowhere(), limits, http=http)
    held = None if cache is None else ReadCache(cache, cache_bytes)
    return Store(_shelf(url), limits, http=http, cache=held)


def _shelf(url: str | os.PathLike[str]) -> Shelf:
    text = os.fspath(url)
    scheme = _SCHEME.match(text) if isinstance(url, str) else None
    if scheme is None:
        if not text or "\0" in text:
            raise ConfigError("the store has no place", remedy="Name a folder")
        return FileShelf(os.path.expanduser(text))  # noqa: PTH111 - Path raises where there is no home
    if scheme[1].lower() in SCHEMES:
        return _object_shelf(text)
    if scheme[1].lower() != "file":
        raise ConfigError(
            f"a store cannot be opened at {scheme[1][:32]}:",
            remedy="Name a folder, or a URL that begins with file://, s3://, gs://, az:// or memory://, or inline:",
        )
    try:
        return FileShelf(path_of(text))
    except ImageSourceError as error:
        raise ConfigError(f"the store's place: {error.problem}", remedy=error.remedy, private=error.private) from None


def _object_shelf(url: str) -> Shelf:
    try:
        from filmroll.store.shelves.objects import ObjectShelf
    except ModuleNotFoundError as error:
        if error.name != "obstore":
            raise
        raise ConfigError(
            "a store in a bucket needs obstore, which is not installed", remedy="Install filmroll[objects]"
        ) from None
    return ObjectShelf(url)
