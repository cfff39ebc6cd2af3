"""Disks that are really full: a small one of its own where mounting is allowed, a limit on files everywhere."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

BALLAST = "ballast"


@contextmanager
def files_no_longer_than(nbytes: int) -> Iterator[None]:
    """The kernel refuses to write more into any file of this process or of those it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Disk:
    """A file system in memory that holds so many bytes."""

    def __init__(self, folder: Path, nbytes: int) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if mounted.returncode:
            pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")

    @property
    def free(self) -> int:
        state = os.statvfs(self.folder)
        return state.f_bavail * state.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Leave no more room than that."""
        with (self.folder / BALLAST).open("ab", buffering=0) as file, suppress(OSError):
            # Others may be writing meanwhile.
            while (room := self.free - leave) > 0:
                file.write(bytes(room))

    def make_room(self) -> None:
        (self.folder / BALLAST).unlink()

    def close(self) -> None:
        """From now on it can be read alone."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@contextmanager
def small_disk(folder: Path, nbytes: int) -> Iterator[Disk]:
    """Mounted there; the test is skipped where that is not allowed."""
    disk = Disk(folder, nbytes)
    try:
        yield disk
    finally:
        disk.unmount()
