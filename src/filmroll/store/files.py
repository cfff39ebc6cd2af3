"""A store in a folder, shared by any number of processes without locks.

    <root>/<first two digits>/<sha256><.png .jpg .webp>   objects, complete and named by their bytes
    <root>/tmp/                                           files being written; never read

An object appears by a link to a file that is already complete and on disk. Everything is opened
from the root's own descriptor, one name at a time, and never through a symbolic link.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from filmroll.errors import (
    ImageDamagedError,
    ImageFormatError,
    ImageNotFoundError,
    OutsideStoreError,
    StoreUnavailableError,
)
from filmroll.image import EXTENSIONS, ImageRef
from filmroll.store.base import Store
from filmroll.store.folders import make_folder, open_file, open_folder, read_exactly, sync_folder
from filmroll.store.ingest import Canonical, Limits

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = "tmp"
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
"""How a file system says that it has no hard links, or no more of them."""


class FileStore(Store):
    """Images below one folder of this machine or of a shared file system.

    The folder is made at the first write. Its uris hold its absolute path, so every process must
    name the folder alike; symbolic links above the root are followed, below it never.
    """

    def __init__(self, root: str | os.PathLike[str], limits: Limits | None = None) -> None:
        super().__init__(limits)
        self.root = Path(os.path.abspath(os.fspath(root)))  # noqa: PTH100 - Path.absolute() keeps `..`
        self._known: set[str] = set()
        self._settled: set[str] = set()

    def __reduce__(self) -> tuple[type[FileStore], tuple[Path, Limits]]:
        return type(self), (self.root, self.limits)

    def __repr__(self) -> str:
        return f"FileStore({str(self.root)!r})"

    def write(self, image: Canonical) -> ImageRef:
        ref = ImageRef(
            uri=self._uri(image.sha256, image.media_type),
            sha256=image.sha256,
            media_type=image.media_type,
            width=image.width,
            height=image.height,
            nbytes=len(image.data),
        )
        with _store_errors("keep", self.root):
            if not self._is_known(ref):
                try:
                    self._keep(ref, image.data)
                except FileNotFoundError:
                    # A folder that was there is gone, removed by hand or by upkeep: make it again.
                    self._settled.clear()
                    self._keep(ref, image.data)
                self._known.add(ref.sha256)
        return ref

    def read(self, ref: ImageRef) -> bytes:
        self._check_inside(ref)
        self.limits.check_bytes(ref.nbytes)
        with _store_errors("read", self.root):
            try:
                data = self._read(ref)
            except FileNotFoundError as error:
                raise ImageNotFoundError(
                    f"the store holds no image {ref.sha256}",
                    remedy="It was never put there, or was removed, or the store is not mounted",
                    private=str(error),
                ) from None
        if hashlib.sha256(data).hexdigest() != ref.sha256:
            raise _damaged(ref, "its bytes have another digest")
        return data

    def _uri(self, digest: str, media_type: str) -> str:
        return (self.root / digest[:2] / _object_name(digest, media_type)).as_uri()

    def _check_inside(self, ref: ImageRef) -> None:
        """The one place an image can be follows from its digest; a reference to any other is refused unopened."""
        if (
            not _DIGEST.fullmatch(ref.sha256)
            or ref.media_type not in EXTENSIONS
            or ref.uri != self._uri(ref.sha256, ref.media_type)
        ):
            raise OutsideStoreError(
                "the image's uri is not the place that this store gives to its digest",
                remedy="Put the image into the store that its readers are configured with",
                private=f"{ref.uri[:200]} is not in {self.root}",
            )

    def _read(self, ref: ImageRef) -> bytes:
        with open_folder(self.root) as root, open_folder(ref.sha256[:2], below=root) as shard:
            name = _object_name(ref.sha256, ref.media_type)
            with open_file(name, below=shard) as (fd, size):
                if size != ref.nbytes:
                    raise _damaged(ref, f"it has {size} bytes, the reference says {ref.nbytes}")
                return read_exactly(fd, size)

    def _is_known(self, ref: ImageRef) -> bool:
        """Whether this process has verified the object before and it is still there, as long as it was."""
        if ref.sha256 not in self._known:
            return False
        path = self.root / ref.sha256[:2] / _object_name(ref.sha256, ref.media_type)
        try:
            return path.lstat().st_size == ref.nbytes
        except FileNotFoundError:
            return False

    def _keep(self, ref: ImageRef, data: bytes) -> None:
        self._settle()
        with open_folder(self.root) as root:
            make_folder(ref.sha256[:2], below=root, settled=self._settled)
            with open_folder(ref.sha256[:2], below=root) as shard:
                name = _object_name(ref.sha256, ref.media_type)
                if not _holds(shard, name, data):
                    self._place(root, shard, name, data)
                # Also after a hit: the writer that placed it may not have come this far.
                sync_folder(shard)

    def _settle(self) -> None:
        """Make the root and its folder for temporary files, and see them on disk, once per process."""
        if _TEMPORARY in self._settled:
            return
        missing = [folder for folder in self.root.parents if not folder.exists()]
        for folder in (*reversed(missing), self.root):
            # Whoever made a root in a folder that this process may not open has settled it.
            with suppress(PermissionError) if folder.exists() else nullcontext(), open_folder(folder.parent) as parent:
                make_folder(folder.name, below=parent, settled=set())
        with open_folder(self.root) as root:
            make_folder(_TEMPORARY, below=root, settled=self._settled)

    def _place(self, root: int, shard: int, name: str, data: bytes) -> None:
        """Write a temporary file whole and to disk, then let the object appear at once."""
        temporary = f"{os.getpid()}-{secrets.token_hex(8)}"
        with open_folder(_TEMPORARY, below=root) as folder:
            try:
                _write_whole(folder, temporary, data)
                _appear(folder, temporary, shard, name, data)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)


def _write_whole(folder: int, name: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o644, dir_fd=folder)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        if os.fstat(fd).st_size != len(data):
            raise OSError(errno.EIO, "the written file has another length")
        os.fsync(fd)
    finally:
        os.close(fd)


def _appear(folder: int, temporary: str, shard: int, name: str, data: bytes) -> None:
    """Link the file under its object's name; an object that is there and damaged is replaced."""
    try:
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=shard, follow_symlinks=False)
        return
    except FileExistsError:
        if _holds(shard, name, data):
            return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=shard)


def _holds(shard: int, name: str, data: bytes) -> bool:
    """Whether the object is there and has exactly these bytes."""
    try:
        with open_file(name, below=shard) as (fd, size):
            return size == len(data) and read_exactly(fd, size) == data
    except (FileNotFoundError, ImageDamagedError):
        return False


def _object_name(digest: str, media_type: str) -> str:
    if media_type not in EXTENSIONS:
        raise ImageFormatError(f"{media_type[:64]!r} is not stored", remedy=f"One of {', '.join(EXTENSIONS)} is")
    return digest + EXTENSIONS[media_type]


def _damaged(ref: ImageRef, how: str) -> ImageDamagedError:
    return ImageDamagedError(
        f"the stored image {ref.sha256} is damaged: {how}", remedy="Put the image into the store again"
    )


@contextmanager
def _store_errors(verb: str, root: Path) -> Iterator[None]:
    """What the file system raises becomes a StoreError that names no path to a client."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailableError(
            f"the store cannot {verb} the image: {os.strerror(error.errno or errno.EIO)}", private=f"{root}: {error}"
        ) from error
