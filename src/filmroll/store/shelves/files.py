"""A shelf in a folder, shared by any number of processes without locks.

A file appears under its name by a link to one that is already complete and on disk. Everything is
opened from the root's own descriptor, one name at a time, and never through a symbolic link.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TypeAlias

from filmroll.durable import free_at, says_full
from filmroll.errors import StoreFullError, StoreUnavailableError
from filmroll.store.keys import TEMPORARY
from filmroll.store.shelves.folders import (
    every_file,
    make_folder,
    open_folder,
    open_path,
    read_below,
    state_below,
    sync_folder,
    write_whole,
)
from filmroll.store.shelves.shelf import Item, Shelf

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
"""How a file system says that it has no hard links, or no more of them."""

_GONE = {errno.ENOENT, errno.ESTALE}
"""How it says that a folder is no longer there, a file server of one that was open included."""

Appear: TypeAlias = Callable[[int, str, int, str], bool]
"""Lets a file of one folder appear in another: (folder, name, other folder, other name)."""


class _NoLinksError(Exception):
    pass


class FileShelf(Shelf):
    """Files below one folder of this machine or of a shared file system.

    The folder is made at the first write. Its uris hold its absolute path, so every process must
    name the folder alike; symbolic links above the root are followed, below it never.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(os.path.abspath(os.fspath(root)))  # noqa: PTH100 - Path.absolute() keeps `..`
        self._path = str(self.root)
        self._uri = self.root.as_uri()
        self._settled: set[str] = set()

    def __reduce__(self) -> tuple[type[FileShelf], tuple[Path]]:
        return type(self), (self.root,)

    def __repr__(self) -> str:
        return f"FileShelf({str(self.root)!r})"

    def uri(self, key: str) -> str:
        return f"{self._uri}/{key}"

    def create(self, key: str, data: bytes) -> bool:
        return self._write(key, data, _appear)

    def replace(self, key: str, data: bytes) -> None:
        self._write(key, data, _rename)

    def settle(self, key: str) -> None:
        # The writer that placed it may not have come to the sync that comes after; it has done those before.
        folder, _, _ = key.rpartition("/")
        with self._errors("keep"), open_folder(self.root) as root, open_path(folder, below=root) as parent:
            sync_folder(parent)

    def read(self, key: str, at_most: int) -> bytes:
        try:
            return read_below(self._path, key, at_most)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise self._failed("read", error) from error
        with self._errors("read"):
            # Another host has replaced it while it was open here.
            return read_below(self._path, key, at_most)

    def stat(self, key: str) -> Item | None:
        with self._errors("read"):
            try:
                return _item(key, state_below(self._path, key))
            except FileNotFoundError:
                return None

    def touch(self, key: str) -> bool:
        folder, _, name = key.rpartition("/")
        try:
            with self._errors("keep"), open_folder(self.root) as root, open_path(folder, below=root) as parent:
                os.utime(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def items(self, folder: str = "") -> Iterator[Item]:
        with self._errors("read"), suppress(FileNotFoundError), open_folder(self.root) as root:
            start = open_path(folder, below=root) if folder else nullcontext(root)
            with start as fd:
                for key, state in every_file(fd, folder):
                    yield _item(key, state)

    def copy(self, key: str, to: str) -> bool:
        try:
            return self._place(to, self._from(key, _link))
        except _NoLinksError:
            return self.create(to, self.read(key, sys.maxsize))

    def move(self, key: str, to: str) -> Item:
        # Not synced: a rename is whole or has not happened, and either way the file is there.
        self._place(to, self._from(key, _move), durable=False)
        moved = self.stat(to)
        if moved is None:
            raise FileNotFoundError(f"{to} was taken away as it arrived")
        return moved

    def delete(self, key: str) -> None:
        folder, _, name = key.rpartition("/")
        # Not synced: a file that a crash brings back does no harm.
        with (
            self._errors("remove"),
            suppress(FileNotFoundError),
            open_folder(self.root) as root,
            open_path(folder, below=root) as parent,
        ):
            os.unlink(name, dir_fd=parent)

    def _write(self, key: str, data: bytes, appear: Appear) -> bool:
        """Write a temporary file whole and to disk, then let it appear at once."""

        def written(root: int, folder: int, name: str) -> bool:
            temporary = f"{os.getpid()}-{secrets.token_hex(8)}"
            with open_folder(TEMPORARY, below=root) as drafts:
                try:
                    write_whole(drafts, temporary, data)
                    return appear(drafts, temporary, folder, name)
                finally:
                    # A draft that stays does no harm.
                    with suppress(OSError):
                        os.unlink(temporary, dir_fd=drafts)

        try:
            return self._place(key, written)
        except FileNotFoundError as error:
            raise StoreUnavailableError("the store's folders vanish as they are made", private=str(error)) from error

    def _from(self, key: str, appear: Appear) -> Callable[[int, int, str], bool]:
        """Let what lies under a key appear elsewhere."""
        folder_of, _, name_of = key.rpartition("/")

        def appeared(root: int, folder: int, name: str) -> bool:
            with open_path(folder_of, below=root) as source:
                return appear(source, name_of, folder, name)

        return appeared

    def _place(self, key: str, act: Callable[[int, int, str], bool], *, durable: bool = True) -> bool:
        """Have a name appear in its folder, which is made if need be, and see it on disk."""
        folder, _, name = key.rpartition("/")

        def placed() -> bool:
            if durable:
                self._settle()
            with open_folder(self.root) as root:
                self._make(folder, root)
                with open_path(folder, below=root) as parent:
                    done = act(root, parent, name)
                    if durable:
                        # Also where the name was taken: who is told so goes by what lies there.
                        sync_folder(parent)
                    return done

        with self._errors("keep"):
            try:
                return placed()
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                # A folder that was there is gone, removed by hand: make it again.
                self._settled.clear()
                return placed()

    def _make(self, folder: str, root: int) -> None:
        """Make a folder of one or two names below the root, and see it on disk, once per process."""
        if folder in self._settled:
            return
        above, _, name = folder.rpartition("/")
        if above:
            self._make(above, root)
        with open_path(above, below=root) if above else nullcontext(root) as parent:
            make_folder(name, below=parent)
        self._settled.add(folder)

    def _settle(self) -> None:
        """Make the root and its folder for temporary files, and see them on disk, once per process.

        So are the folders above: one that is there may have been made a moment ago, by a process
        that has not come to its fsync.
        """
        if TEMPORARY in self._settled:
            return
        for folder in (*reversed(self.root.parents[:-1]), self.root):
            there = folder.exists()
            # Whoever made one in a folder that this process may not open has settled it.
            with suppress(PermissionError) if there else nullcontext(), open_folder(folder.parent) as parent:
                if there:
                    sync_folder(parent)
                else:
                    make_folder(folder.name, below=parent)
        with open_folder(self.root) as root:
            self._make(TEMPORARY, root)

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        """What the file system raises becomes a StoreError that names no path to a client."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._failed(verb, error) from error

    def _failed(self, verb: str, error: OSError) -> StoreUnavailableError:
        problem = f"the store cannot {verb} the image: {os.strerror(error.errno or errno.EIO)}"
        if says_full(error):
            return StoreFullError(problem, remedy="Make room there", private=free_at(self.root))
        return StoreUnavailableError(problem, private=f"{self.root}: {error}")


def _item(key: str, state: os.stat_result) -> Item:
    return Item(key, state.st_size if stat.S_ISREG(state.st_mode) else -1, state.st_mtime)


def _appear(source: int, name: str, folder: int, to: str) -> bool:
    """Give a finished draft its name; False if that is taken."""
    try:
        return _link(source, name, folder, to)
    except _NoLinksError:
        return False if _exists(folder, to) else _rename(source, name, folder, to)


def _link(source: int, name: str, folder: int, to: str) -> bool:
    """Give the file a second name; False if that is taken."""
    try:
        os.link(name, to, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise _NoLinksError from error
        raise
    return True


def _rename(source: int, name: str, folder: int, to: str) -> bool:
    os.replace(name, to, src_dir_fd=source, dst_dir_fd=folder)
    return True


def _move(source: int, name: str, folder: int, to: str) -> bool:
    moved = os.lstat(name, dir_fd=source)
    try:
        return _rename(source, name, folder, to)
    except OSError:
        # A file server whose answer was lost has done what it is asked again.
        with suppress(OSError):
            if os.path.samestat(moved, os.lstat(to, dir_fd=folder)):
                return True
        raise


def _exists(folder: int, name: str) -> bool:
    try:
        os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True
