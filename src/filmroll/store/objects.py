"""A shelf in a bucket: S3 and what speaks it, Google, Azure, or the memory of this process.

An object appears whole, and lasts, with the one request that puts it: nothing is ever half there,
and nothing is left to settle. Conditions on requests keep writers apart: `create` asks that the key
be free, `touch` that the object be the one that was read.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from filmroll.errors import ImageLimitError, StoreUnavailableError
from filmroll.store.buckets import connect, read_url
from filmroll.store.keys import TEMPORARY
from filmroll.store.shelf import Item, Shelf

if TYPE_CHECKING:
    from obstore import ObjectMeta, UpdateVersion

PATIENCE = 40.0
"""Seconds for which a failing request is sent again; the last one may take half as long on top."""

IN_FLIGHT = 32
"""Requests of one process that are under way at once, whatever its number of threads and stores."""

_turns = threading.BoundedSemaphore(IN_FLIGHT)
_PAGE = 1000
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")

_process: int | None = None
"""Which process has used a bucket first: obstore's own threads do not survive a fork."""


class ObjectShelf(Shelf):
    """Objects below a prefix of one bucket, named by a URL such as s3://bucket/prefix.

    `memory://name` is one place for the whole process, gone when it ends: for tests, and for runs
    in a single process.
    """

    def __init__(self, url: str, *, patience: float = PATIENCE) -> None:
        bucket = read_url(url)
        self.url = bucket.url
        self.patience = patience
        self._prefix = f"{bucket.prefix}/" if bucket.prefix else ""
        self._client = connect(bucket, patience)

    def __reduce__(self) -> tuple[type[ObjectShelf], tuple[str], dict[str, float]]:
        return type(self), (self.url,), {"patience": self.patience}

    def __repr__(self) -> str:
        return f"ObjectShelf({self.url!r})"

    def uri(self, key: str) -> str:
        return f"{self.url}/{quote(key)}"

    def create(self, key: str, data: bytes) -> bool:
        """False is also the answer where the object is ours, and the first answer got lost on its way."""
        with _request("keep"):
            try:
                self._client.put(self._path(key), data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            except FileNotFoundError as error:
                raise _no_bucket(error) from None
            return True

    def replace(self, key: str, data: bytes) -> None:
        with _request("keep"):
            try:
                self._client.put(self._path(key), data, mode="overwrite", use_multipart=False)
            except FileNotFoundError as error:
                raise _no_bucket(error) from None

    def settle(self, key: str) -> None:
        pass

    def read(self, key: str, at_most: int) -> bytes:
        return self._get(key, at_most)[0]

    def stat(self, key: str) -> Item | None:
        meta = self._head(key)
        return None if meta is None else self._item(meta)

    def touch(self, key: str) -> bool:
        """Written anew with the same bytes: S3 refuses to copy an object onto itself.

        Only if it is still what was read: a touch brings back nothing that was removed or mended.
        """
        try:
            data, meta = self._get(key, sys.maxsize)
        except FileNotFoundError:
            return False
        version: UpdateVersion = {}
        if meta["version"]:
            version["version"] = meta["version"]
        # Ceph compares the tag without the quotes that it has sent.
        for tag in (meta["e_tag"] or "", (meta["e_tag"] or "").strip('"')):
            if self._update(key, data, {**version, "e_tag": tag}):
                return True
        return self.stat(key) is not None

    def items(self, folder: str = "") -> Iterator[Item]:
        with _request("list"):
            pages = iter(self._client.list(self._path(folder) or None, chunk_size=_PAGE))
        while True:
            # Whoever takes the items may use the store in between, so no turn is held meanwhile.
            with _request("list"):
                page = next(pages, None)
            if page is None:
                return
            yield from map(self._item, page)

    def copy(self, key: str, to: str) -> bool:
        # Through this process: S3 has no copy that leaves alone what it finds.
        return self.create(to, self.read(key, sys.maxsize))

    def move(self, key: str, to: str) -> Item:
        """A copy and a removal; what somebody has put or touched in between stays where it is."""
        before = self._head(key)
        if before is None:
            raise FileNotFoundError(key)
        with _request("keep"):
            self._client.copy(self._path(key), self._path(to))
        after = self._head(key) or before
        if (after["e_tag"], after["last_modified"]) == (before["e_tag"], before["last_modified"]):
            self.delete(key)
        return Item(to, after["size"], after["last_modified"].timestamp())

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError), _request("remove"):
            self._client.delete(self._path(key))

    def now(self) -> float:
        probe = f"{TEMPORARY}/clock-{secrets.token_hex(8)}"
        try:
            self.create(probe, b"")
            item = self.stat(probe)
        finally:
            self.delete(probe)
        if item is None:
            raise StoreUnavailableError("the store lost an object that was just written")
        return item.modified

    def _get(self, key: str, at_most: int) -> tuple[bytes, ObjectMeta]:
        with _request("read"):
            found = self._client.get(self._path(key))
            size = found.meta["size"]
            if size > at_most:
                raise ImageLimitError(f"the stored object has {size} bytes, expected are at most {at_most}")
            return bytes(found.bytes()), found.meta

    def _head(self, key: str) -> ObjectMeta | None:
        with suppress(FileNotFoundError), _request("read"):
            return self._client.head(self._path(key))
        return None

    def _update(self, key: str, data: bytes, version: UpdateVersion) -> bool:
        """Write the object anew if it is still of that version."""
        with _request("keep"):
            try:
                self._client.put(self._path(key), data, mode=version, use_multipart=False)
            except PreconditionError:
                return False
            return True

    def _path(self, key: str) -> str:
        return self._prefix + key

    def _item(self, meta: ObjectMeta) -> Item:
        return Item(meta["path"].removeprefix(self._prefix), meta["size"], meta["last_modified"].timestamp())


@contextmanager
def _request(verb: str) -> Iterator[None]:
    """One turn at the network; what fails becomes a StoreError that names no address and no bucket to a client."""
    _stay_in_process()
    with _turns:
        try:
            yield
        except FileNotFoundError as error:
            if any(text in str(error) for text in _NO_BUCKET):
                raise _no_bucket(error) from None
            raise FileNotFoundError(_first_line(error)) from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise StoreUnavailableError(
                f"the object store does not permit to {verb} the image",
                remedy="Give these credentials the right to get, put, delete and list below the store's prefix",
                private=_first_line(error),
            ) from None
        except (BaseError, ValueError) as error:
            raise StoreUnavailableError(
                f"the object store cannot {verb} the image",
                remedy="Look whether it is up, and whether endpoint, region and credentials are right",
                private=_first_line(error),
            ) from None


def _stay_in_process() -> None:
    global _process
    if _process is None:
        _process = os.getpid()
    elif _process != os.getpid():
        raise StoreUnavailableError(
            "this process was forked from one that had used an object store",
            remedy="Start processes with spawn or forkserver, or open the store in the child alone",
        )


def _no_bucket(error: FileNotFoundError) -> StoreUnavailableError:
    return StoreUnavailableError(
        "the store's bucket is not there", remedy="Create it, or mend the store's URL", private=_first_line(error)
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
