"""Folders and files that a crash or a full disk finds whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filmroll.errors import DiskFullError

FULL_STATUS = 73
"""How a process exits that found no room on a disk (EX_CANTCREAT): it is not started again before there is some."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""There is no room left; nobody has left this user any; a file must not grow any further."""
_IN_WORDS = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust, safetensors among them, quote the system in an error of their own."""


def says_full(error: BaseException) -> str:
    """What the system said, if it was that a disk is full; else nothing."""
    words = _IN_WORDS.search(str(error))
    number = error.errno if isinstance(error, OSError) else int(words[1]) if words else None
    return os.strerror(number) if number in _FULL else ""


def tells_full(text: str) -> bool:
    """Whether it tells, in the system's words, that a disk is full: what a program leaves that is not ours."""
    return any(os.strerror(number) in text for number in _FULL)


def disk_full(error: BaseException, what: str = "what is to be written", place: Path | None = None) -> DiskFullError:
    """That error, for whoever has seen that it `says_full`; `place` is where there was no room for `what`."""
    if place is None and isinstance(error, OSError) and error.filename is not None:
        place = Path(os.fsdecode(error.filename))
    return DiskFullError(
        f"there is no room for {what}: {says_full(error)}", remedy="Make room there", private=free_at(place)
    )


def free_at(place: Path | None) -> str:
    """A place, as far as it is known, and how much is free there."""
    if place is None:
        return ""
    try:
        free = shutil.disk_usage(next(one for one in (place, *place.parents) if one.exists())).free
    except OSError:
        return str(place)
    return f"{place}, {free:,} bytes are free"


@contextmanager
def room_for(what: str, place: Path) -> Iterator[None]:
    """Where the body finds a disk full, it is a DiskFullError that says for what there was no room, and where."""
    try:
        yield
    except Exception as error:
        if says_full(error):
            raise disk_full(error, what, place) from error
        raise


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A draft folder to fill; it becomes `target` when the body ends well, and is gone when it does not.

    What is in it is on disk before it bears its name. A folder that had the name is replaced. A disk
    that has no room for it is a DiskFullError.
    """
    with room_for(f"{target.parent.name}/{target.name}", target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        # Inside: what is free is asked while the draft still takes room.
        with room_for(f"{target.parent.name}/{target.name}", target.parent):
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
        try:
            draft.rename(target)
        except OSError:
            (aside / "replaced").rename(target)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_whole(target: Path, parts: Sequence[memoryview]) -> None:
    """A file of these parts, on disk before it bears its name. One that had the name is replaced.

    A disk that has no room for it is a DiskFullError, and nothing is left of it.
    """
    draft = target.with_name(f".{target.name}.partial")
    nbytes = sum(part.nbytes for part in parts)
    try:
        with room_for(f"{target.parent.name}/{target.name}, {nbytes:,} bytes", target.parent):
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


def append_line(target: Path, line: bytes) -> None:
    """One more line of a file that one process writes, in one write, so that a kill tears at most the last.

    Where a full disk takes only a part of it, which is a DiskFullError, nothing of it stays.
    """
    with room_for(f"a line of {target.name}", target.parent), target.open("ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(before)
            raise
