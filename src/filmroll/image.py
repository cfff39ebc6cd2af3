"""ImageRef: what travels in place of an image."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""All 64 hex digits of a sha256: a cut digest can name another image's bytes."""

Side = Annotated[int, msgspec.Meta(ge=1, le=2**20)]

EXTENSIONS = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}
"""The media types that canonical images have, and the file ending of each."""

INLINE = "data:"
"""How a uri begins that holds the image itself."""
MAX_INLINE_BYTES = 4 * 2**20
"""The longest image that travels inside its reference."""

Uri = Annotated[
    str,
    msgspec.Meta(
        max_length=4 * -(-MAX_INLINE_BYTES // 3) + len("data:image/jpeg;base64,"),
        pattern=r"\A(?:[!#-\[\]-~]{1,4096}|data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/]*={0,2})\Z",
    ),
]
"""Where an image is, at most 4,096 characters that JSON does not escape, or the image itself."""

_INLINE_HEAD = re.compile(r"data:(image/(?:jpeg|png|webp));base64,")


class ImageRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One stored image: where it is, what its bytes hash to, and what its header says.

    An ImageRef is a claim until a store has read it: `Store.read` returns bytes only if they have
    this length and this digest.
    """

    uri: Uri
    sha256: Digest
    media_type: Annotated[str, msgspec.Meta(pattern=r"\Aimage/(jpeg|png|webp)\Z")]
    width: Side
    height: Side
    nbytes: Annotated[int, msgspec.Meta(ge=1, le=2**32)]


def inline_media_type(uri: str) -> str | None:
    """What the image inside this uri is said to be, or None if it is elsewhere."""
    head = _INLINE_HEAD.match(uri)
    return None if head is None else head[1]
