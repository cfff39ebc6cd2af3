"""A file system in memory that keeps of a crash what it has promised to keep, and of the rest what chance wants.

- What is in a file is safe once the file is synced; else the crash may leave nothing, a part,
  zeros, a part and zeros, or all.
- A name in a folder is safe once the folder is synced. Of the changes since, each one is there
  or not, whatever came before or after it and in whichever folder. A rename is one change.
- A folder's own name is safe once the folder above it is synced.

It answers system calls as Linux does, in the parts that the store uses; a call that it does not
know is an error of the test. Which sync goes unheard can be chosen, to see whether that is found.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeAlias

from tests.store.reliability.calls import Call


class File:
    """`safe` is what a crash leaves of the data, None if anything."""

    def __init__(self, data: bytes = b"", safe: bytes | None = None) -> None:
        self.data, self.safe = data, safe
        self.modified = self.safe_modified = time.time()


class Folder:
    """`safe` is what a crash leaves of the names, each with the number of the change that it comes from."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.names: dict[str, Node] = {}
        self.safe: dict[str, tuple[int, Node | None]] = {}
        self.modified = time.time()


Node: TypeAlias = File | Folder


@dataclass(frozen=True)
class Change:
    """Names that change together: (folder, name, what it names from now on)."""

    number: int
    edits: tuple[tuple[Folder, str, Node | None], ...]

    def touches(self, folder: Folder) -> bool:
        return any(edited is folder for edited, _, _ in self.edits)

    def make_safe(self) -> None:
        for folder, name, node in self.edits:
            if folder.safe.get(name, (-1, None))[0] < self.number:
                folder.safe[name] = (self.number, node)


@dataclass
class _Open:
    node: Node
    position: int = 0


def _heard(node: Node) -> bool:
    return True


@dataclass
class Disk:
    top: Folder = field(default_factory=lambda: Folder("/"))
    heard: Callable[[Node], bool] = _heard
    """Whether a sync of that file or folder does anything."""
    pending: list[Change] = field(default_factory=list)
    opened: dict[int, _Open] = field(default_factory=dict)
    changes: int = 0
    """Calls so far that have changed what a crash may leave."""
    _numbers: Any = field(default_factory=lambda: count(1000))

    def __call__(self, name: str, real: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name not in _CALLS:
            raise NotImplementedError(f"os.{name} is not simulated")
        self.changes += name in ("write", "fsync", "utime")
        return getattr(self, f"_{name}")(*args, **kwargs)

    def crash(self, chance: random.Random) -> Disk:
        """The disk as another start of the machine may find it."""
        share = chance.choice((0.0, 0.1, 0.5, 0.5, 0.9, 1.0))
        arrived = {id(folder): dict(folder.safe) for change in self.pending for folder, _, _ in change.edits}
        for change in self.pending:
            if chance.random() < share:
                for folder, name, node in change.edits:
                    names = arrived[id(folder)]
                    if names.get(name, (-1, None))[0] < change.number:
                        names[name] = (change.number, node)
        found: dict[int, Node] = {}

        def after(node: Node) -> Node:
            if id(node) in found:
                return found[id(node)]
            if isinstance(node, File):
                new: Node = File(data := torn(node, chance), data)
                new.modified = new.safe_modified = chance.choice((node.modified, node.safe_modified))
            else:
                new = Folder(node.path)
                names = arrived.get(id(node), node.safe)
                new.names = {name: after(inner) for name, (_, inner) in names.items() if inner is not None}
                new.safe = {name: (0, inner) for name, inner in new.names.items()}
            found[id(node)] = new
            return new

        top = after(self.top)
        assert isinstance(top, Folder)
        return Disk(top)

    def find(self, path: str) -> Node | None:
        node: Node | None = self.top
        for name in path.strip("/").split("/"):
            node = node.names.get(name) if isinstance(node, Folder) else None
        return node

    # What follows are system calls, named and answered as those of `os`.

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        folder, name = self._at(path, dir_fd)
        node = folder.names.get(name) if name else folder
        if node is None and flags & os.O_CREAT:
            node = File()
            self._change((folder, name, node))
        elif flags & os.O_CREAT and flags & os.O_EXCL:
            raise _error(errno.EEXIST, path)
        if node is None:
            raise _error(errno.ENOENT, path)
        if flags & os.O_DIRECTORY and isinstance(node, File):
            raise _error(errno.ENOTDIR, path)
        fd: int = next(self._numbers)
        self.opened[fd] = _Open(node)
        return fd

    def _close(self, fd: int) -> None:
        if self.opened.pop(fd, None) is None:
            raise _error(errno.EBADF)

    def _read(self, fd: int, length: int) -> bytes:
        held = self._held(fd)
        assert isinstance(held.node, File)
        data = held.node.data[held.position : held.position + length]
        held.position += len(data)
        return data

    def _write(self, fd: int, data: bytes) -> int:
        held = self._held(fd)
        assert isinstance(held.node, File)
        assert held.position == len(held.node.data)
        # Half of it, as a disk may: so that a crash can come in between.
        part = bytes(data)[: max(1, len(data) // 2)]
        held.node.data += part
        held.position += len(part)
        return len(part)

    def _fsync(self, fd: int) -> None:
        node = self._held(fd).node
        if not self.heard(node):
            return
        if isinstance(node, File):
            node.safe = node.data
            return
        for change in self.pending:
            if change.touches(node):
                change.make_safe()
        self.pending = [change for change in self.pending if not change.touches(node)]

    def _fstat(self, fd: int) -> os.stat_result:
        return _state(self._held(fd).node)

    def _stat(self, path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        folder, name = self._at(path, dir_fd)
        return _state(self._there(folder, name) if name else folder)

    def _lstat(self, path: Any, *, dir_fd: int | None = None) -> os.stat_result:
        return self._stat(path, dir_fd=dir_fd)

    def _listdir(self, fd: int) -> list[str]:
        node = self._held(fd).node
        assert isinstance(node, Folder)
        return list(node.names)

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        folder, name = self._at(path, dir_fd)
        if not name or name in folder.names:
            raise _error(errno.EEXIST, path)
        self._change((folder, name, Folder(f"{folder.path.rstrip('/')}/{name}")))

    def _link(self, source: Any, to: Any, *, src_dir_fd: int, dst_dir_fd: int, follow_symlinks: bool) -> None:
        file = self._there(*self._at(source, src_dir_fd))
        folder, name = self._at(to, dst_dir_fd)
        if name in folder.names:
            raise _error(errno.EEXIST, to)
        self._change((folder, name, file))

    def _replace(self, source: Any, to: Any, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        before, old = self._at(source, src_dir_fd)
        folder, name = self._at(to, dst_dir_fd)
        file = self._there(before, old)
        if folder.names.get(name) is not file:
            self._change((before, old, None), (folder, name, file))

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        folder, name = self._at(path, dir_fd)
        self._there(folder, name)
        self._change((folder, name, None))

    def _utime(self, path: Any, *, dir_fd: int, follow_symlinks: bool) -> None:
        self._there(*self._at(path, dir_fd)).modified = time.time()

    def _held(self, fd: int) -> _Open:
        if fd not in self.opened:
            raise _error(errno.EBADF)
        return self.opened[fd]

    def _at(self, path: Any, dir_fd: int | None) -> tuple[Folder, str]:
        """The folder of a path, and its last name there."""
        path = os.fspath(path)
        node: Node | None = self.top if path.startswith("/") or dir_fd is None else self._held(dir_fd).node
        *above, name = path.strip("/").split("/")
        for folder in above:
            node = node.names.get(folder) if isinstance(node, Folder) else None
        if node is None:
            raise _error(errno.ENOENT, path)
        if isinstance(node, File):
            raise _error(errno.ENOTDIR, path)
        return node, name

    @staticmethod
    def _there(folder: Folder, name: str) -> Node:
        if name not in folder.names:
            raise _error(errno.ENOENT, name)
        return folder.names[name]

    def _change(self, *edits: tuple[Folder, str, Node | None]) -> None:
        for folder, name, node in edits:
            if node is None:
                del folder.names[name]
            else:
                folder.names[name] = node
        self.pending.append(Change(next(self._numbers), edits))
        self.changes += 1


_CALLS = {
    *("open", "close", "read", "write", "fsync", "fstat", "stat", "lstat", "listdir"),
    *("mkdir", "link", "replace", "unlink", "utime"),
}


def torn(file: File, chance: random.Random) -> bytes:
    if file.safe == file.data:
        return file.data
    length = len(file.data)
    part = file.data[: chance.randint(0, length)]
    return chance.choice((b"", part, bytes(length), part + bytes(length - len(part)), file.data))


def _state(node: Node) -> os.stat_result:
    mode, size = (stat.S_IFREG | 0o644, len(node.data)) if isinstance(node, File) else (stat.S_IFDIR | 0o755, 0)
    return os.stat_result((mode, id(node), 1, 1, 0, 0, size, *(int(node.modified),) * 3))


def _error(code: int, path: object = None) -> OSError:
    return OSError(code, os.strerror(code), path)
