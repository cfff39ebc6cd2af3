"""Images of other systems: files straight in the store's folder, named by the first digits of their hash.

They are read where they lie and never changed. As with our own images, a reference chooses nothing
that is opened: a file's place follows from its name, which is hex digits and an ending, and its bytes
must have the digest that the name begins.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from urllib.parse import unquote

from filmroll.errors import ImageDamagedError, ImageFormatError, ImageNotFoundError, OutsideStoreError
from filmroll.image import EXTENSIONS, INLINE, ImageRef
from filmroll.store.formats.base import Limits
from filmroll.store.formats.header import read_header
from filmroll.store.inline import data_uri, decoded
from filmroll.store.keys import MEDIA_TYPES, object_key, read_object_name
from filmroll.store.shelves.shelf import Shelf

_NAME = re.compile(r"([0-9a-f]{16,64})(\.png|\.jpg|\.webp)\Z")


def foreign_key(shelf: Shelf, ref: ImageRef) -> str | None:
    """Where such a file lies, if it is one that the reference names and its name begins the digest; else None."""
    match = _NAME.search(ref.uri[-70:])
    if match is None or not ref.sha256.startswith(match[1]) or MEDIA_TYPES[match[2]] != ref.media_type:
        return None
    return match[0] if shelf.uri(match[0]) == ref.uri else None


def read_foreign(shelf: Shelf, key: str, ref: ImageRef, limits: Limits) -> bytes:
    """A file's bytes, if they have the length and digest that the reference gives."""
    limits.check_bytes(ref.nbytes)
    data = _read(shelf, key, ref.nbytes)
    if len(data) != ref.nbytes or hashlib.sha256(data).hexdigest() != ref.sha256:
        raise _damaged()
    return data


def locate(shelf: Shelf, locator: str, digest: str | None, limits: Limits) -> ImageRef:
    """What another system calls an image, as a whole reference: by a file's name, a uri, or a data: URI.

    `digest` is as much of the hash as is known. The bytes are read once to find out the rest.
    """
    if locator.startswith(INLINE):
        data, uri = decoded(locator, limits), None
    else:
        key, data = found(shelf, locator, limits)
        uri = shelf.uri(key)
    whole = hashlib.sha256(data).hexdigest()
    if not whole.startswith(digest or ""):
        raise _damaged()
    header = read_header(data, limits)
    media_type = f"image/{header.format.lower()}"
    if uri is None:
        if media_type not in EXTENSIONS:
            raise ImageFormatError(f"{header.format} is not read from references", remedy="Put it into a store")
        uri = data_uri(media_type, data)
    else:
        media_type = MEDIA_TYPES["." + uri.rpartition(".")[2]]
    return ImageRef(uri, whole, media_type, header.width, header.height, len(data))


def found(shelf: Shelf, locator: str, limits: Limits) -> tuple[str, bytes]:
    """The first of the places that follow from the locator's name where there is a file."""
    for key in _places(shelf, locator):
        try:
            data = shelf.read(key, limits.max_bytes)
        except FileNotFoundError:
            continue
        if not hashlib.sha256(data).hexdigest().startswith(key.rpartition("/")[2].partition(".")[0]):
            raise _damaged()
        return key, data
    raise ImageNotFoundError(
        "the store holds no image of that name", remedy="It was never put there, or the store is not mounted"
    )


def _places(shelf: Shelf, locator: str) -> Iterator[str]:
    """Where an image of that name can be in this store; a uri is one of these places, or outside."""
    match = _NAME.search(locator[-70:])
    if match is None:
        raise _outside(shelf, locator)
    name = match[0]
    keys = [name] if read_object_name(name) is None else [object_key(name), name]
    places = [key for key in keys if locator == name or unquote(shelf.uri(key)) == unquote(locator)]
    if not places:
        raise _outside(shelf, locator)
    yield from places


def _read(shelf: Shelf, key: str, at_most: int) -> bytes:
    try:
        return shelf.read(key, at_most)
    except FileNotFoundError as error:
        raise ImageNotFoundError("the store holds no image of that name", private=str(error)) from None


def _outside(shelf: Shelf, locator: str) -> OutsideStoreError:
    return OutsideStoreError(
        "the image is not in this store, or its name does not begin with its hash",
        remedy="Have its writer use the store's folder, and name files by at least 16 digits of their sha256",
        private=f"{locator[:200]} is not in {shelf!r}",
    )


def _damaged() -> ImageDamagedError:
    return ImageDamagedError(
        "the image's bytes have another hash than its name or reference says",
        remedy="Its file was changed or cut off, or two images share a short name: write it again",
    )
