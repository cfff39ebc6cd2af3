"""The store: put an image once, get a reference; read a reference, get those bytes or an error.

Everything that makes a store trustworthy is here, once, above any shelf: what a hit is, what
damage is and where it goes, and that an image on its way out is still found.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress

import anyio.to_thread

from filmroll.errors import (
    FilmrollError,
    ImageDamagedError,
    ImageLimitError,
    ImageNotFoundError,
    OutsideStoreError,
    StoreError,
    StoreUnavailableError,
)
from filmroll.image import EXTENSIONS, INLINE, ImageRef
from filmroll.store.cache import ReadCache
from filmroll.store.foreign import foreign_key, found, locate, read_foreign
from filmroll.store.ingest.canonical import Canonical, HttpSources, Limits, Source, canonical
from filmroll.store.inline import read_inline
from filmroll.store.keys import QUARANTINE, TRASH, is_digest, object_key, object_name, read_object_name
from filmroll.store.recent import Recent
from filmroll.store.shelves.shelf import Item, Shelf
from filmroll.store.together import together

log = logging.getLogger(__name__)

GRACE = 86_400.0
"""Seconds for which nothing is removed that was put, even if nothing refers to it yet.

Whoever puts an image has half of this time to refer to it in a manifest or to hold a lease.
"""

_ATTEMPTS = 10


class Store:
    """A content-addressed store of canonical images.

    Thread-safe; any number of processes and machines may use the same place at once, without locks.
    """

    def __init__(
        self,
        shelf: Shelf,
        limits: Limits | None = None,
        *,
        grace: float = GRACE,
        http: HttpSources | None = None,
        cache: ReadCache | None = None,
    ) -> None:
        self.shelf = shelf
        self.limits = limits or Limits()
        self.grace = grace
        self.http = http
        self.cache = cache
        self._known: Recent[None] = Recent(1 << 16)

    def __reduce__(self) -> tuple[type[Store], tuple[Shelf, Limits], dict[str, object]]:
        return type(self), (self.shelf, self.limits), {"grace": self.grace, "http": self.http, "cache": self.cache}

    def __repr__(self) -> str:
        return f"Store({self.shelf!r})"

    def put(self, source: Source) -> ImageRef:
        """Make the image canonical, write it if it is new, and say where it is."""
        return self.write(canonical(source, self.limits, self.http))

    def put_many(self, sources: Iterable[Source]) -> list[ImageRef]:
        """`put` for each, a few at a time; the first error, with its image's number, once the others are all put."""
        results = list(together(self._try_to_put, sources))
        for index, result in enumerate(results):
            if isinstance(result, FilmrollError):
                raise result.at(index=index) from result
        return [result for result in results if isinstance(result, ImageRef)]

    async def aput(self, source: Source) -> ImageRef:
        """`put`, off the event loop."""
        return await anyio.to_thread.run_sync(self.put, source)

    async def aput_many(self, sources: Iterable[Source]) -> list[ImageRef]:
        """`put_many`, off the event loop."""
        return await anyio.to_thread.run_sync(self.put_many, sources)

    async def aread(self, ref: ImageRef) -> bytes:
        """`read`, off the event loop."""
        return await anyio.to_thread.run_sync(self.read, ref)

    def write(self, image: Canonical) -> ImageRef:
        """Keep canonical bytes under their digest; once this returns, a crash loses nothing."""
        key = object_key(object_name(image.sha256, image.media_type))
        if not self._is_known(key, image):
            self._keep(key, image.data)
            self._known.add(key, None)
        return ImageRef(
            uri=self.shelf.uri(key),
            sha256=image.sha256,
            media_type=image.media_type,
            width=image.width,
            height=image.height,
            nbytes=len(image.data),
        )

    def read(self, ref: ImageRef) -> bytes:
        """The bytes whose digest and length the reference names: never others, never from elsewhere."""
        if ref.uri.startswith(INLINE):
            return read_inline(ref, self.limits)
        foreign = foreign_key(self.shelf, ref)
        if foreign is not None:
            return read_foreign(self.shelf, foreign, ref, self.limits)
        name = self._name_inside(ref)
        self.limits.check_bytes(ref.nbytes)
        data = self._cached(name, ref.nbytes)
        if len(data) != ref.nbytes:
            raise _damage(name, f"it has {len(data)} bytes, the reference says {ref.nbytes}")
        return data

    def read_at(self, uri: str) -> bytes:
        """`read` for whoever knows an image's uri alone, in which its digest stands; another system's file, too."""
        name = uri.rpartition("/")[2]
        if read_object_name(name) is not None and uri == self.shelf.uri(object_key(name)):
            return self._cached(name, self.limits.max_bytes)
        return found(self.shelf, uri, self.limits)[1]

    def locate(self, locator: str, digest: str | None = None) -> ImageRef:
        """What another system calls an image, as a whole reference: by a file's name, a uri, or a data: URI.

        `digest` is as much of the hash as is known. The bytes are read, and compared with it.
        """
        return locate(self.shelf, locator, digest, self.limits)

    def read_named(self, name: str, at_most: int) -> bytes:
        """`read` for whoever knows an object's name alone, such as a manifest."""
        try:
            return self._verified(name, at_most)
        except ImageDamagedError as damage:
            how = damage.problem
        aside = False
        with suppress(StoreError, FileNotFoundError):
            aside = self.set_aside(object_key(name))
        if not aside:
            # It may be whole: mended meanwhile, or not what was read at first.
            with suppress(StoreError):
                return self._verified(name, at_most)
        raise _damage(name, f"{how}; it was set aside" if aside else how)

    def keep_fresh(self, item: Item) -> bool:
        """Upkeep leaves alone what was put lately: an image that is put again is put lately. False if it is gone."""
        if time.time() - item.modified < self.grace / 2:
            return True
        try:
            return self.shelf.touch(item.key)
        except StoreUnavailableError:
            return self._write_anew(item)

    def set_aside(self, key: str) -> bool:
        """Move what lies in an image's place, or in trash, into quarantine, if it is not what its name says."""
        name = key.rpartition("/")[2]
        aside = f"{QUARANTINE}/{name}.{secrets.token_hex(4)}"
        if self._is_good(key, name):
            return False
        self.shelf.move(key, aside)
        if self._is_good(aside, name):
            # Somebody put the image again just before it was moved.
            self.shelf.copy(aside, key)
            self.shelf.delete(aside)
            return False
        log.error("the stored image %s is damaged and was set aside as %s", name, aside)
        return True

    def _try_to_put(self, source: Source) -> ImageRef | FilmrollError:
        try:
            return self.put(source)
        except FilmrollError as error:
            return error

    def _name_inside(self, ref: ImageRef) -> str:
        """The one place an image can be follows from its digest; a reference to any other is refused unopened."""
        if is_digest(ref.sha256) and ref.media_type in EXTENSIONS:
            name = object_name(ref.sha256, ref.media_type)
            if ref.uri == self.shelf.uri(object_key(name)):
                return name
        raise OutsideStoreError(
            "the image's uri is not the place that this store gives to its digest",
            remedy="Put the image into the store that its readers are configured with",
            private=f"{ref.uri[:200]} is not in {self.shelf!r}",
        )

    def _cached(self, name: str, at_most: int) -> bytes:
        """`read_named`, by way of the local copies."""
        held = None if self.cache is None else self.cache.get(name, at_most)
        if held is not None:
            return held
        data = self.read_named(name, at_most)
        if self.cache is not None:
            self.cache.keep(name, data)
        return data

    def _verified(self, name: str, at_most: int) -> bytes:
        digest = name.partition(".")[0]
        try:
            data = self._find(name, at_most)
        except FileNotFoundError as error:
            raise ImageNotFoundError(
                f"the store holds no image {digest}",
                remedy="It was never put there, or was removed, or the store is not mounted",
                private=str(error),
            ) from None
        except ImageLimitError as error:
            raise ImageDamagedError(error.problem) from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise ImageDamagedError("its bytes have another digest")
        return data

    def _find(self, name: str, at_most: int) -> bytes:
        """An image's bytes, also where upkeep has found no reference to it and has not removed it yet."""
        try:
            return self.shelf.read(object_key(name), at_most)
        except FileNotFoundError:
            try:
                return self.shelf.read(f"{TRASH}/{name}", at_most)
            except FileNotFoundError:
                # It may have been restored between the two.
                self._take_back(name)
                return self.shelf.read(object_key(name), at_most)

    def _take_back(self, name: str) -> None:
        """Undo what `set_aside` did to an image that was put again just before it moved, if it was killed then."""
        for item in self.shelf.items(QUARANTINE):
            with suppress(FileNotFoundError):
                if item.key.startswith(f"{QUARANTINE}/{name}.") and self._is_good(item.key, name):
                    self.shelf.copy(item.key, object_key(name))

    def _write_anew(self, item: Item) -> bool:
        """What is another user's file may be read and written anew where it may not be touched."""
        try:
            data = self._verified(item.key.rpartition("/")[2], item.nbytes)
        except (ImageNotFoundError, ImageDamagedError):
            return False
        self.shelf.replace(item.key, data)
        return True

    def _is_known(self, key: str, image: Canonical) -> bool:
        """Whether this process has verified the object before and it is still there, as long as it was."""
        if key not in self._known:
            return False
        item = self.shelf.stat(key)
        return item is not None and item.nbytes == len(image.data) and self.keep_fresh(item)

    def _holds(self, key: str, data: bytes) -> bool:
        """Whether the object is there, durably, with exactly these bytes; a damaged one is mended."""
        try:
            found = self.shelf.read(key, len(data))
            if found == data:
                self.shelf.settle(key)
        except FileNotFoundError:
            return False
        except (ImageDamagedError, ImageLimitError):
            found = None
        if found != data:
            self._mend(key, data)
            return True
        item = self.shelf.stat(key)
        return item is not None and self.keep_fresh(item)

    def _keep(self, key: str, data: bytes) -> None:
        for _ in range(_ATTEMPTS):
            if self._holds(key, data) or self.shelf.create(key, data):
                return
            # Somebody else was faster: look at what he has put there.
        raise StoreUnavailableError(
            "the store says that an image is there and shows none", remedy="Look whether all hosts see the same folder"
        )

    def _mend(self, key: str, data: bytes) -> None:
        name = key.rpartition("/")[2]
        aside, leaving = f"{QUARANTINE}/{name}.{secrets.token_hex(4)}", f"{TRASH}/{name}"
        with suppress(StoreError, FileNotFoundError):
            self.shelf.copy(key, aside)
        # In a bucket, where a move is a copy and a removal, whoever moves the damage out of the way may
        # be about to remove what is written now: readers look here, too, and upkeep brings it back.
        self.shelf.replace(leaving, data)
        self.shelf.replace(key, data)
        log.error("what the store held as %s was damaged; it was set aside as %s and written anew", key, aside)

    def _is_good(self, key: str, name: str) -> bool:
        try:
            data = self.shelf.read(key, self.limits.max_bytes)
        except ImageDamagedError:
            return False
        except ImageLimitError:
            return True  # Not for this reader to judge: others may allow more.
        return hashlib.sha256(data).hexdigest() == name.partition(".")[0]


def _damage(name: str, how: str) -> ImageDamagedError:
    digest = name.partition(".")[0]
    return ImageDamagedError(
        f"the stored image {digest} is damaged: {how}", remedy="Put the image into the store again"
    )
