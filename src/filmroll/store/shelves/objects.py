"""A shelf in a bucket: S3 and what speaks it, Google, Azure, or the memory of this process.

An object appears whole, and lasts, with the one request that puts it: nothing is ever half there,
and nothing is left to settle. Conditions on requests keep writers apart: `create` asks that the key
be free, `touch` that the object be the one that was read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from filmroll.errors import ImageLimitError
from filmroll.store.shelves.buckets import connect, read_url
from filmroll.store.shelves.requests import no_bucket, send
from filmroll.store.shelves.shelf import Item, Shelf

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutMode, UpdateVersion

Answer = TypeVar("Answer")

PATIENCE = 40.0
"""Seconds for which a failing request is sent again; whoever asks learns of it within twice that."""

_PAGE = 1000


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

    def __reduce__(self) -> tuple[Callable[[str, float], ObjectShelf], tuple[str, float]]:
        return _reopen, (self.url, self.patience)

    def __repr__(self) -> str:
        return f"ObjectShelf({self.url!r})"

    def uri(self, key: str) -> str:
        return f"{self.url}/{key}"

    def create(self, key: str, data: bytes) -> bool:
        """False is also the answer where the object is ours, and the first answer got lost on its way."""
        return self._put(key, data, "create")

    def replace(self, key: str, data: bytes) -> None:
        self._put(key, data, "overwrite")

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
        tag = meta["e_tag"] or ""
        # Ceph compares the tag without the quotes that it has sent.
        return any(self._put(key, data, _only_if(meta, one)) for one in (tag, tag.strip('"'))) or bool(self.stat(key))

    def items(self, folder: str = "") -> Iterator[Item]:
        pages: Iterator[Sequence[ObjectMeta]] | None = None
        last: str | None = None

        def turn() -> Sequence[ObjectMeta] | None:
            nonlocal pages
            if pages is None:
                pages = iter(self._client.list(self._path(folder) or None, offset=last, chunk_size=_PAGE))
            try:
                return next(pages, None)
            except BaseError:
                # After an error it would say that it has come to its end.
                pages = None
                raise

        while page := self._send("list", turn):
            yield from map(self._item, page)
            last = page[-1]["path"]

    def copy(self, key: str, to: str) -> bool:
        # Through this process: S3 has no copy that leaves alone what it finds.
        return self.create(to, self.read(key, sys.maxsize))

    def move(self, key: str, to: str) -> Item:
        """A copy and a removal; what somebody has put or touched in between stays where it is."""
        before = self._head(key)
        if before is None:
            raise FileNotFoundError(key)
        self._send("keep", lambda: self._client.copy(self._path(key), self._path(to)))
        after = self._head(key) or before
        if (after["e_tag"], after["last_modified"]) == (before["e_tag"], before["last_modified"]):
            self.delete(key)
        return Item(to, after["size"], after["last_modified"].timestamp())

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self._send("remove", lambda: self._client.delete(self._path(key)))

    def _put(self, key: str, data: bytes, mode: PutMode) -> bool:
        """False if the object that is there, or is not, keeps that from happening."""

        def put() -> bool:
            try:
                self._client.put(self._path(key), data, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
            except FileNotFoundError as error:
                raise no_bucket(error) from None
            return True

        return self._send("keep", put)

    def _get(self, key: str, at_most: int) -> tuple[bytes, ObjectMeta]:
        def get() -> tuple[bytes, ObjectMeta]:
            found = self._client.get(self._path(key))
            size = found.meta["size"]
            if size > at_most:
                raise ImageLimitError(f"the stored object has {size} bytes, expected are at most {at_most}")
            return bytes(found.bytes()), found.meta

        return self._send("read", get)

    def _head(self, key: str) -> ObjectMeta | None:
        with suppress(FileNotFoundError):
            return self._send("read", lambda: self._client.head(self._path(key)))
        return None

    def _send(self, verb: str, call: Callable[[], Answer]) -> Answer:
        return send(verb, call, self.patience)

    def _path(self, key: str) -> str:
        return self._prefix + key

    def _item(self, meta: ObjectMeta) -> Item:
        return Item(meta["path"].removeprefix(self._prefix), meta["size"], meta["last_modified"].timestamp())


def _only_if(meta: ObjectMeta, tag: str) -> UpdateVersion:
    """The condition that an object be the same still; Google goes by its version, the others by the tag."""
    version = meta["version"]
    return {"e_tag": tag} if version is None else {"e_tag": tag, "version": version}


def _reopen(url: str, patience: float) -> ObjectShelf:
    return ObjectShelf(url, patience=patience)
