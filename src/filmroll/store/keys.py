"""What the keys of a store mean.

ab/abcd….png                an image, complete, named by the sha256 of its bytes
trash/abcd….png             an image that nothing referred to, on its way out; still read
quarantine/abcd….png.123    what was found in an image's place and is not that image; never read
manifests/<run>/<label>     images that a run refers to
leases/<name>               images that somebody holds for a while
tmp/…                       being written; never read
features/…                  made from images, and can be made again
"""

from __future__ import annotations

import re

from filmroll.errors import ImageFormatError
from filmroll.image import EXTENSIONS

TRASH = "trash"
QUARANTINE = "quarantine"
MANIFESTS = "manifests"
LEASES = "leases"
TEMPORARY = "tmp"
FEATURES = "features"
OWN_FOLDERS = frozenset({TRASH, QUARANTINE, MANIFESTS, LEASES, TEMPORARY, FEATURES})

MEDIA_TYPES = {ending: media_type for media_type, ending in EXTENSIONS.items()}

_DIGEST = re.compile(r"[0-9a-f]{64}")
_OBJECT_NAME = re.compile(r"([0-9a-f]{64})(\.png|\.jpg|\.webp)")


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def object_name(digest: str, media_type: str) -> str:
    if media_type not in EXTENSIONS:
        raise ImageFormatError(f"{media_type[:64]!r} is not stored", remedy=f"One of {', '.join(EXTENSIONS)} is")
    return digest + EXTENSIONS[media_type]


def object_key(name: str) -> str:
    """Where the image of that object name lies."""
    return f"{name[:2]}/{name}"


def read_object_name(name: str) -> tuple[str, str] | None:
    """Digest and media type of an object's name, or None where it is no such name."""
    match = _OBJECT_NAME.fullmatch(name)
    return None if match is None else (match[1], MEDIA_TYPES[match[2]])


def named_object(key: str) -> str | None:
    """The object name of a key that an image lies under, or None where the key is another's."""
    name = key.rpartition("/")[2]
    return name if read_object_name(name) is not None and key == object_key(name) else None
