"""The one kind of tar that filmroll writes and reads: plain files, one after another, and nothing else.

A header is read by asking what it would be for its name and size: all 512 bytes must be those. So
there are no links, devices, paths of other kinds, sparse or extended headers to be careful with.
"""

from __future__ import annotations

import re
import tarfile
from typing import BinaryIO

from filmroll.errors import ArchiveError

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_SIZE = re.compile(rb"[0-7]{11}\0")


def write_member(file: BinaryIO, name: str, data: bytes) -> None:
    file.write(_header(name, len(data)))
    file.write(data)
    file.write(bytes(-len(data) % _BLOCK))


def write_end(file: BinaryIO) -> None:
    file.write(_END)


def read_member(file: BinaryIO, at_most: int) -> tuple[str, bytes]:
    """The next member's name and content; ArchiveError if there is none of at most that size."""
    block = _exactly(file, _BLOCK)
    size = _SIZE.fullmatch(block[124:136])
    parts = [block[start:end].rstrip(b"\0") for start, end in ((345, 500), (0, 100))]
    name = b"/".join(part for part in parts if part).decode("ascii", "replace")
    if size is None or not _is_header(block, name, int(size[0][:-1], 8)):
        raise ArchiveError("a member's header is not as filmroll writes it", private=name[:100])
    nbytes = int(size[0][:-1], 8)
    if nbytes > at_most:
        raise ArchiveError(f"{name[:100]!r} has {nbytes:,} bytes, expected are at most {at_most:,}")
    data = _exactly(file, nbytes)
    if any(_exactly(file, -nbytes % _BLOCK)):
        raise ArchiveError(f"{name[:100]!r} is not followed by zeros")
    return name, data


def read_end(file: BinaryIO) -> None:
    """ArchiveError unless the archive ends here."""
    if file.read(len(_END) + 1) != _END:
        raise ArchiveError("the archive does not end where it should")


def _header(name: str, nbytes: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = nbytes, 0o644
    return member.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def _is_header(block: bytes, name: str, nbytes: int) -> bool:
    try:
        return block == _header(name, nbytes)
    except ValueError:  # No header has this name.
        return False


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ArchiveError("the archive ends early", remedy="Export it again, or copy it again")
    return data
