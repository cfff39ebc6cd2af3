"""Folders and files that a crash finds whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A draft folder to fill; it becomes `target` when the body ends well, and is gone when it does not.

    What is in it is on disk before it bears its name. A folder that had the name is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield draft
        draft.chmod(0o755)
        for file in draft.iterdir():
            file.chmod(0o644)
            sync(file)
        sync(draft)
        _put_in_place(draft, target)
        sync(target.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def sync(path: Path) -> None:
    """Have the file or folder on disk before anything that comes after."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put_in_place(draft: Path, target: Path) -> None:
    if not target.exists():
        draft.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        target.rename(aside / "replaced")
        draft.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_whole(target: Path, parts: Sequence[memoryview]) -> None:
    """A file of these parts, on disk before it bears its name. One that had the name is replaced."""
    draft = target.with_name(f".{target.name}.partial")
    try:
        with draft.open("wb", buffering=0) as file:
            for part in parts:
                rest = part.cast("B")
                while rest:
                    rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync(target.parent)
