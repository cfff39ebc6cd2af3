"""ImageRef: what travels in place of an image."""

from __future__ import annotations

from typing import Annotated

import msgspec

Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""All 64 hex digits of a sha256: a cut digest can name another image's bytes."""

Side = Annotated[int, msgspec.Meta(ge=1, le=2**20)]

EXTENSIONS = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}
"""The media types that canonical images have, and the file ending of each."""


class ImageRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One stored image: where it is, what its bytes hash to, and what its header says.

    An ImageRef is a claim until a store has read it: `Store.read` returns bytes only if they have
    this length and this digest.
    """

    uri: Annotated[str, msgspec.Meta(max_length=4096)]
    sha256: Digest
    media_type: Annotated[str, msgspec.Meta(pattern=r"\Aimage/(jpeg|png|webp)\Z")]
    width: Side
    height: Side
    nbytes: Annotated[int, msgspec.Meta(ge=1, le=2**32)]
