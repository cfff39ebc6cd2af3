"""Pillow at arm's length: its readers by format, and the one place where its errors become ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from filmroll.errors import FilmrollError, ImageFormatError, ImageLimitError
from filmroll.store.formats.base import Format

_READERS: dict[Format, type[ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
}

_ADDRESS = re.compile(r"<[^>]*>|\b0x[0-9a-fA-F]+")


@contextmanager
def image_errors(what: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes an ImageError about `what`.

    Broken images make Pillow raise OSError, SyntaxError, ValueError, struct.error, zlib.error,
    EOFError, OverflowError, AttributeError and more; its messages can hold heap addresses.
    """
    try:
        yield
    except FilmrollError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageLimitError(f"{what} is too large to decode", private=_said(error)) from error
    except Exception as error:
        raise ImageFormatError(
            f"{what} cannot be decoded", remedy="Write it again from its source", private=_said(error)
        ) from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {_ADDRESS.sub('...', str(error))[:200]}"


def open_image(data: bytes, format_: Format) -> ImageFile:
    """The first frame of a file, not yet decoded.

    The reader is called by its class: `Image.open` would try others, and print warnings about size.
    """
    with image_errors(f"the {format_} file"):
        return _READERS[format_](BytesIO(data))
