"""GIF: the blocks before the first picture."""

from __future__ import annotations

from filmroll.store.formats.base import most_parts, too_many_parts

_EXTENSION, _PICTURE, _END = b"!,;"


def check_gif(data: bytes) -> None:
    """ImageLimitError if Pillow would have to collect a comment of very many small pieces, or as many comments."""
    most = most_parts(data)
    place, within = 13 + _colours(data), False
    for _ in range(most):
        if place >= len(data):
            return
        first = data[place]
        if within:
            place, within = place + 1 + first, first > 0
        elif first == _EXTENSION:
            place, within = place + 2, True
        elif first in (_PICTURE, _END):
            return
        else:
            place += 1
    raise too_many_parts("GIF", "blocks before its first picture", most)


def _colours(data: bytes) -> int:
    """Bytes of the table of colours that the header announces."""
    flags = data[10] if len(data) > 10 else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
