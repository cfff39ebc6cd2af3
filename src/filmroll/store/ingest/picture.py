"""The one written policy by which any picture becomes an upright 8-bit RGB or grey one.

H = height, W = width. Both transparency and orientation are handled as vLLM's own image reading
does, so that what is stored shows what an engine would have made of the original.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from filmroll.errors import ImageFormatError
from filmroll.store.formats.base import Header, Limits
from filmroll.store.formats.pillow import image_errors

ORIENTATION_TAG = 0x0112

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Level 4 rather than Pillow's 6: the same size on photographs for less time. Rather than 1: frames
# of games and screens, which are what usually comes as arrays, are a third as large.
_COMPRESS_LEVEL = 4


def orientation(image: Image.Image) -> int:
    """The EXIF (or XMP) orientation of a loaded image; metadata that cannot be read says nothing."""
    try:
        with image_errors("the image's metadata"):
            value = image.getexif().get(ORIENTATION_TAG, 1)
            return int(value) if value in _TURNS else 1
    except ImageFormatError:
        return 1


def upright_rgb(image: Image.Image) -> Image.Image:
    """A new picture, mode RGB or L: flattened on white, turned upright, metadata left behind."""
    with image_errors("the image"):
        image.load()
        turn = _TURNS.get(orientation(image))
        flat = _flat(image)
        return flat if turn is None else flat.transpose(turn)


def scale_key(image: Image.Image, header: Header) -> None:
    """Put the transparent colour of a PNG file on the scale of its decoded samples.

    Pillow widens grey samples of 2 and 4 bits to 8 and cuts colour samples of 16 bits down to 8,
    and leaves the key as it stands in the file.
    """
    key = image.info.get("transparency")
    if header.format != "PNG" or key is None:
        return
    if image.mode == "L" and header.depth < 8:
        image.info["transparency"] = key * 255 // ((1 << header.depth) - 1)
    elif image.mode == "RGB" and header.depth == 16:
        raise ImageFormatError(
            "a 16-bit colour PNG with one transparent colour cannot be read exactly",
            remedy="Write it with 8 bits or with an alpha channel",
        )


def samples(array: npt.NDArray[Any], limits: Limits) -> npt.NDArray[np.uint8]:
    """The picture in an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8 or uint16, in 8 bits and of its own.

    Channels come last. A channels-first array is never guessed at: [3, 4, 4] could be either.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        raise ImageFormatError(
            f"an array of shape {array.shape} is no picture",
            remedy="It is channels first: move them last, as in array.transpose(1, 2, 0) or tensor.permute(1, 2, 0)"
            if first
            else "Pass one picture of shape [height, width] or [height, width, 1, 3 or 4]",
        )
    limits.check_size(array.shape[1], array.shape[0])
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return np.ascontiguousarray(high_byte(array))
    if array.dtype != np.uint8:
        raise ImageFormatError(
            f"an array of {array.dtype} is no picture", remedy="Scale it to 0..255 and convert it to uint8"
        )
    # A copy: an environment may draw its next frame into the same memory.
    return np.array(array, order="C")


def from_samples(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    with image_errors("the array"):
        image = Image.fromarray(pixels)
        return _on_white(image) if image.mode == "RGBA" else image


def high_byte(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """16-bit samples as 8 bits, by their high byte.

    round(v / 257) would be nearer by at most one level; but Pillow's own reading of 16-bit colour
    and libpng's png_set_strip_16 take the high byte, so this is what readers of the original see,
    and grey, colour and arrays agree.
    """
    return (array >> 8).astype(np.uint8)


def encode_png(image: Image.Image) -> bytes:
    """The picture as PNG, of pixels alone: no metadata, hence the same bytes for the same pixels."""
    out = BytesIO()
    with image_errors("the image"):
        image.save(out, "PNG", compress_level=_COMPRESS_LEVEL)
    return out.getvalue()


def _flat(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _flat_grey16(image)
    if image.mode in ("I", "F"):
        raise ImageFormatError(
            f"pixels of mode {image.mode} have no agreed range", remedy="Scale them to 0..255 and convert to mode L"
        )
    if image.has_transparency_data:
        return _on_white(image)
    if image.mode in ("1", "L"):
        return _bare(image.convert("L"))
    return _bare(image.convert("RGB"))


def _flat_grey16(image: Image.Image) -> Image.Image:
    samples = np.asarray(image)
    grey = high_byte(samples)
    key = image.info.get("transparency")
    if key is not None:
        grey[samples == key] = 255
    return Image.fromarray(grey)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    flat = Image.new("RGB", rgba.size, (255, 255, 255))
    flat.paste(rgba, mask=rgba.getchannel("A"))
    return flat


def _bare(image: Image.Image) -> Image.Image:
    """The same pixels without the metadata that Pillow would write into a PNG."""
    bare = image.copy()
    bare.info = {}
    return bare
