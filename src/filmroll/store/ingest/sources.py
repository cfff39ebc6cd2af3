"""Where an image may come from: bytes, a path, a data: or file: URI, a Pillow image, an array; a URL if allowed."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
import numpy.typing as npt
from PIL import Image

from filmroll.errors import ImageFormatError, ImageSourceError
from filmroll.store.formats.base import Limits
from filmroll.store.formats.header import sniff
from filmroll.store.ingest.http_sources import PORTS, HttpSources

Source: TypeAlias = (
    "bytes | bytearray | memoryview | str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8 | np.uint16] | Any"
)
"""What `put` takes: encoded bytes; a path, or a data: or file: URI; a Pillow image; a uint8 or uint16
array or torch tensor, [height, width] or [height, width, 1, 3 or 4]; an http(s) URL, if the store has
HttpSources. `Any` stands for the tensor, because torch is never imported here. A str is opened as a
file: pass no text of strangers."""

Array: TypeAlias = npt.NDArray[Any]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_DATA_HEAD = re.compile(r"data:([^;,]*)((?:;[^;,]*)*),", re.IGNORECASE)
_MAX_DATA_HEAD = 256
_MEDIA_TYPES = {
    "JPEG": ("image/jpeg", "image/jpg"),
    "PNG": ("image/png", "image/apng"),
    "WEBP": ("image/webp",),
    "GIF": ("image/gif",),
    "BMP": ("image/bmp", "image/x-ms-bmp"),
    "TIFF": ("image/tiff",),
}


def fetch(source: Source, limits: Limits, http: HttpSources | None = None) -> bytes | Image.Image | Array:
    """The source's encoded bytes, or its picture where it is one already."""
    if isinstance(source, bytes | bytearray | memoryview):
        limits.check_bytes(memoryview(source).nbytes)
        return bytes(source)
    if isinstance(source, str):
        return _fetch_text(source, limits, http)
    if isinstance(source, os.PathLike):
        return _read_file(os.fspath(source), limits)
    if isinstance(source, Image.Image):
        return source
    return _array(source)


def path_of(uri: str) -> str:
    """The absolute path in a file: URI of this machine."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise ImageSourceError("the file: URI cannot be read", private=uri[:200]) from None
    if parts.netloc.lower() not in ("", "localhost"):
        raise ImageSourceError(
            "the file: URI names another host", remedy="Write file:///path, or file://localhost/path", private=uri[:200]
        )
    if not parts.path.startswith("/") or parts.query or parts.fragment:
        raise ImageSourceError(
            "the file: URI holds no absolute path, or an unescaped ? or #",
            remedy="Write file:///path, percent-encoded",
            private=uri[:200],
        )
    return os.fsdecode(unquote_to_bytes(parts.path))


def _fetch_text(text: str, limits: Limits, http: HttpSources | None) -> bytes:
    kind = text[:5].lower()
    if kind == "data:":
        return _decode_data(text, limits)
    if kind == "file:":
        return _read_file(path_of(text), limits)
    scheme = _SCHEME.match(text)
    if scheme is None:
        return _read_file(text, limits)
    name = scheme[1].lower()
    if http is None or name not in PORTS:
        raise ImageSourceError(
            f"images are not fetched over {name[:16]}",
            remedy="Pass the bytes, a path, or a data: URI"
            + (", or open the store with HttpSources, which is multimodal.fetch in a run" if name in PORTS else ""),
        )
    # Not at the top: stores that fetch nothing need not load an HTTP client.
    from filmroll.store.ingest.remote import fetch_url

    return fetch_url(text, limits, http)


def _decode_data(uri: str, limits: Limits) -> bytes:
    head = _DATA_HEAD.match(uri, 0, _MAX_DATA_HEAD)
    if head is None or not head[2].lower().endswith(";base64"):
        raise ImageSourceError("the data: URI is not base64", remedy="Write data:image/png;base64,...")
    limits.check_bytes((len(uri) - head.end()) // 4 * 3 - 2)
    try:
        data = base64.b64decode(uri[head.end() :].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ImageSourceError(
            "the data: URI's base64 is broken",
            remedy="Use the standard alphabet with padding, without line breaks",
        ) from None
    declared, format_ = head[1].lower(), sniff(data)
    if declared not in _MEDIA_TYPES[format_]:
        raise ImageFormatError(
            f"the data: URI says {declared[:32]!r}, its bytes are {format_}",
            remedy=f"Declare {_MEDIA_TYPES[format_][0]}",
        )
    return data


def _read_file(path: str | bytes, limits: Limits) -> bytes:
    """A regular file's bytes; it is opened without waiting, so that a FIFO cannot hang the caller."""
    private = os.fsdecode(path)[:200]
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise _unreadable(error, private) from None
    try:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            raise ImageSourceError("the path names no regular file", private=private)
        limits.check_bytes(state.st_size)
        with os.fdopen(fd, "rb", closefd=False) as file:
            data = file.read(limits.max_bytes + 1)
    except OSError as error:
        raise _unreadable(error, private) from None
    finally:
        os.close(fd)
    limits.check_bytes(len(data))
    return data


def _unreadable(error: OSError | ValueError, private: str) -> ImageSourceError:
    reason = (isinstance(error, OSError) and error.strerror) or "it is no valid path"
    return ImageSourceError(
        f"the image's file cannot be read: {reason}",
        remedy="Pass an existing file, or a data: URI for encoded bytes",
        private=private,
    )


def _array(source: Any) -> Array:
    """A numpy array, also from what looks like a torch tensor."""
    try:
        if hasattr(source, "detach") and hasattr(source, "cpu"):
            source = source.detach().cpu()
        if hasattr(source, "__array__"):
            return np.asarray(source)
    except Exception as error:
        raise ImageSourceError(
            f"the {type(source).__name__} cannot be read as an array",
            remedy="Pass uint8 values",
            private=type(error).__name__,
        ) from error
    raise ImageSourceError(
        f"{type(source).__name__} is no image source",
        remedy="Pass bytes, a path, a data: or file: URI, a Pillow image, or a uint8 array",
    )
