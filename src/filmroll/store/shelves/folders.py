"""Opening files and folders one name at a time from a folder's descriptor, never through a symbolic link."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from filmroll.errors import ImageDamagedError, ImageLimitError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""O_NONBLOCK: opening a FIFO in place of an object must not wait for a writer."""


@contextmanager
def open_folder(name: str | os.PathLike[str], *, below: int | None = None) -> Iterator[int]:
    """A folder's descriptor; `below` another one no symbolic link is followed."""
    fd = os.open(name, _FOLDER) if below is None else _open_inner(os.fspath(name), below)
    try:
        yield fd
    finally:
        _close(fd)


@contextmanager
def open_path(path: str, *, below: int) -> Iterator[int]:
    """The descriptor of a folder some names below another one."""
    first, _, rest = path.partition("/")
    with open_folder(first, below=below) as fd:
        if not rest:
            yield fd
            return
        with open_path(rest, below=fd) as inner:
            yield inner


def read_below(root: str, key: str, at_most: int) -> bytes:
    """A regular file's bytes; ImageLimitError if they are more than that, ImageDamagedError if it is no file.

    Straight down, without the context managers above: this is what every read of an image costs.
    """
    folder, name = _open_folder_of(root, key)
    try:
        file = _open_file(name, folder)
    finally:
        _close(folder)
    try:
        state = os.fstat(file)
        if not stat.S_ISREG(state.st_mode):
            raise _no_object("something that is no regular file is in its place")
        if state.st_size > at_most:
            raise ImageLimitError(f"the stored file has {state.st_size} bytes, expected are at most {at_most}")
        return read_exactly(file, state.st_size)
    finally:
        _close(file)


def state_below(root: str, key: str) -> os.stat_result:
    """What lies under a key, unopened, whatever it is."""
    folder, name = _open_folder_of(root, key)
    try:
        return os.lstat(name, dir_fd=folder)
    finally:
        _close(folder)


def read_exactly(fd: int, size: int) -> bytes:
    """That many bytes; if the file ends before, it is being changed, which says nothing of what it holds."""
    data = os.read(fd, size)
    if len(data) == size:
        return data
    parts, missing = [data], size - len(data)
    while missing:
        part = os.read(fd, missing)
        if not part:
            raise OSError(errno.EIO, "the file ends before its length")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def write_whole(folder: int, name: str, data: bytes) -> None:
    """A new file, all of it on disk."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o644, dir_fd=folder)
    try:
        rest = memoryview(data)
        while rest and (written := os.write(fd, rest)):
            rest = rest[written:]
        if os.fstat(fd).st_size != len(data):
            raise OSError(errno.EIO, "the written file has another length")
        os.fsync(fd)
    finally:
        # Not _close: a file server may say only now that it has not taken what was written.
        os.close(fd)


def every_file(fd: int, folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """All that is no folder below an opened one, in order, as (path, state); folders that go meanwhile are passed."""
    for name in sorted(os.listdir(fd)):
        path = f"{folder}/{name}" if folder else name
        try:
            state = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if not stat.S_ISDIR(state.st_mode):
                yield path, state
                continue
            with open_folder(name, below=fd) as inner:
                yield from every_file(inner, path)
        except FileNotFoundError:
            continue


def make_folder(name: str, *, below: int) -> None:
    """Make a folder if it is missing, and see its name on disk.

    A folder that is there already may have been made by a process that has not come to its fsync.
    """
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=below)
    sync_folder(below)


def sync_folder(fd: int) -> None:
    """See a folder's entries on disk; file systems that cannot say so keep them by themselves."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def _open_inner(name: str, below: int) -> int:
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=below)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise _no_object("a folder of the store is a symbolic link or a file") from None
        raise


def _open_folder_of(root: str, key: str) -> tuple[int, str]:
    """The descriptor of the folder that a key is in, and its name in there."""
    *folders, name = key.split("/")
    if not folders:
        return os.open(root, _FOLDER), name
    fd = _open_first(root, folders[0])
    for folder in folders[1:]:
        try:
            inner = _open_inner(folder, fd)
        finally:
            _close(fd)
        fd = inner
    return fd, name


def _open_first(root: str, name: str) -> int:
    """A folder in the root, opened in one step: O_NOFOLLOW is about the last name of a path."""
    try:
        return os.open(f"{root}/{name}", _FOLDER | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
    # Either that folder is no folder, or the root is none: in two steps it is seen which.
    with open_folder(root) as below:
        return _open_inner(name, below)


def _open_file(name: str, below: int) -> int:
    try:
        return os.open(name, _FILE, dir_fd=below)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
            raise _no_object("a symbolic link or device is in its place") from None
        raise


def _close(fd: int) -> None:
    """For what was only read from: it is closed, whatever closing it says."""
    try:
        os.close(fd)
    except OSError:
        return


def _no_object(how: str) -> ImageDamagedError:
    return ImageDamagedError(f"the stored image is damaged: {how}", remedy="Look into the store's folder")
