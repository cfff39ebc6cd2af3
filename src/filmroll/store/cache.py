"""Copies of a store's images on a local disk, so that a machine fetches each of them once.

Any number of processes share the folder, without locks. Nothing here is trusted and nothing is
needed: every copy is hashed before it is given out, and whatever goes wrong with the disk, the
image comes from the store. Only reading fills it: what a writer puts is read elsewhere as a rule,
and a put should cost one write, not two.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

from filmroll.errors import ConfigError, ImageDamagedError, ImageLimitError
from filmroll.store.keys import object_key
from filmroll.store.shelves.folders import every_file, open_folder, open_path, read_below

CACHE_BYTES = 10 << 30

_FOLDER = "filmroll-cache"
"""Nothing outside this folder is ever removed, whatever folder the cache was given."""

_SHARE = 8
"""How many processes may fill the folder at once before they can get past its limit together."""


class ReadCache:
    """At most that many bytes of images in a folder; what was read longest ago gives way. Thread-safe."""

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int = CACHE_BYTES) -> None:
        if not os.fspath(folder) or "\0" in os.fspath(folder):
            raise ConfigError("the cache has no place", remedy="Name a folder on a local disk")
        self.folder = Path(os.path.abspath(os.path.expanduser(folder)))  # noqa: PTH100, PTH111 - as for a store's root
        self.max_bytes = max_bytes
        self._root = str(self.folder / _FOLDER)
        self._room = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[ReadCache], tuple[Path, int]]:
        return type(self), (self.folder, self.max_bytes)

    def get(self, name: str, at_most: int) -> bytes | None:
        """The image of that object name, or None if there is no good copy of at most so many bytes."""
        key = object_key(name)
        try:
            data = read_below(self._root, key, at_most)
        except (OSError, ImageDamagedError, ImageLimitError):
            return None
        if hashlib.sha256(data).hexdigest() != name.partition(".")[0]:
            return None
        with suppress(OSError):
            os.utime(f"{self._root}/{key}", follow_symlinks=False)
        return data

    def keep(self, name: str, data: bytes) -> None:
        """Keep a verified image, in place of a damaged copy too; where the disk refuses, nothing happens."""
        if len(data) > self.max_bytes:
            return
        with suppress(OSError, ImageDamagedError):
            Path(self._root).mkdir(parents=True, exist_ok=True)
            with open_folder(self._root) as root:
                self._make_room(root, len(data))
                with suppress(FileExistsError):
                    os.mkdir(name[:2], dir_fd=root)
                with open_folder(name[:2], below=root) as folder:
                    _appear(folder, name, data)

    def _make_room(self, root: int, nbytes: int) -> None:
        """Look into the folder whenever this process has used up its share of what was free."""
        with self._lock:
            self._room -= nbytes
            if self._room < 0:
                self._room = (self.max_bytes - self._remove_oldest(root, nbytes)) // _SHARE - nbytes

    def _remove_oldest(self, root: int, nbytes: int) -> int:
        """See that there is room for so many bytes; how many are used then.

        Drafts of processes that were killed are files like all others, and grow old. If something
        cannot be removed, nothing more is kept.
        """
        files = sorted(every_file(root, ""), key=lambda file: file[1].st_mtime)
        used = sum(state.st_size for _, state in files)
        if used + nbytes <= self.max_bytes * 7 // 8:
            return used
        for path, state in files:
            if used + nbytes <= self.max_bytes * 3 // 4:
                break
            with suppress(FileNotFoundError):
                _remove(root, path)
            used -= state.st_size
        return used


def _remove(root: int, path: str) -> None:
    above, _, name = path.rpartition("/")
    with open_path(above, below=root) as folder:
        os.unlink(name, dir_fd=folder)


def _appear(folder: int, name: str, data: bytes) -> None:
    """Write a draft and rename it. Not synced: what a crash takes or tears is fetched again."""
    draft = f".{secrets.token_hex(8)}"
    try:
        with open(draft, "xb", opener=partial(os.open, mode=0o644, dir_fd=folder)) as file:
            file.write(data)
        os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(OSError):
            os.unlink(draft, dir_fd=folder)
        raise
