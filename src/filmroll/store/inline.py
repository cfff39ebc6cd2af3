"""Images inside their own references, as data: URIs: for writers and readers that share no place.

A data: URI is written in one spelling, so that equal images have equal references. Readers check its
length and digest as those of any stored image; nothing is opened.
"""

from __future__ import annotations

import binascii
import hashlib

from filmroll.errors import ImageDamagedError, ImageLimitError, OutsideStoreError
from filmroll.image import INLINE, MAX_INLINE_BYTES, ImageRef, inline_media_type
from filmroll.store.formats.base import Limits


def data_uri(media_type: str, data: bytes) -> str:
    if len(data) > MAX_INLINE_BYTES:
        raise ImageLimitError(
            f"the image has {len(data)} bytes, at most {MAX_INLINE_BYTES} travel inside a reference",
            remedy="Shrink it, or use a store that writers and readers share",
        )
    return f"{INLINE}{media_type};base64,{binascii.b2a_base64(data, newline=False).decode()}"


def read_inline(ref: ImageRef, limits: Limits) -> bytes:
    """The image that is in the reference, if it has the length and digest that the reference gives."""
    if inline_media_type(ref.uri) != ref.media_type:
        raise OutsideStoreError(
            f"the image's uri is no data: URI of {ref.media_type}", remedy="Make it with open_store('inline:').put()"
        )
    limits.check_bytes(ref.nbytes)
    data = decoded(ref.uri, limits)
    if len(data) != ref.nbytes or hashlib.sha256(data).hexdigest() != ref.sha256:
        raise ImageDamagedError(
            f"the image in the reference has {len(data)} bytes and another digest, or another length",
            remedy="Put the image anew; a reference cannot be edited",
        )
    return data


def decoded(uri: str, limits: Limits) -> bytes:
    """What a data: URI of base64 holds; its length is looked at first."""
    head, found, body = uri.partition(";base64,")
    if not found or not head.startswith(INLINE + "image/"):
        raise ImageDamagedError("the data: URI is no image in base64", remedy="Write data:image/png;base64,...")
    limits.check_bytes(len(body) // 4 * 3 - 2)
    try:
        return binascii.a2b_base64(body, strict_mode=True)
    except ValueError:
        raise ImageDamagedError(
            "the data: URI's base64 is broken", remedy="Use the standard alphabet with padding, without line breaks"
        ) from None
