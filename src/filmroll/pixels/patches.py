"""From a picture to the values that a vision tower reads.

H, W = height and width in pixels; ph, pw = height and width of a patch; m = merge side, in patches;
t = temporal copies; C = 3 channels; h, w = grid in patches (h = H / ph, w = W / pw); N = h * w patches.

A patch is laid out as [C, t, ph, pw], or [ph, pw, C] with channels last. Patches that the model
will merge into one token stand next to each other: the order is [h / m, w / m, m, m]. A picture that
is not cut at all is one patch of its own size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Rgb = npt.NDArray[np.uint8]
Values = npt.NDArray[np.generic]
"""Of the table's own type: float32, bfloat16, or the uint8 levels themselves."""
Table = npt.NDArray[np.generic]
"""[C, 256]: what each level of each channel becomes."""
Channels = tuple[float, float, float]

CHANNELS = 3
LEVELS = 256
UNCHANGED: Table = np.repeat(np.arange(LEVELS, dtype=np.uint8)[None], CHANNELS, axis=0)
"""The table of levels that are kept as they are, to be normalized later."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How a picture is cut; `patch` is (height, width), None for a picture that stays whole."""

    patch: tuple[int, int] | None = None
    merge: int = 1
    temporal: int = 1
    channels_last: bool = False


def resize(rgb: Rgb, height: int, width: int, resample: int) -> Rgb:
    """The picture [H, W, C] at another size, by one of Pillow's filters; the same picture if the size is its own."""
    if rgb.shape[:2] == (height, width):
        return rgb
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling(resample)))


def level_table(rescale: float | None, normalize: tuple[Channels, Channels] | None = None) -> npt.NDArray[np.float32]:
    """[C, 256]: the float that each 8 bit level of each channel becomes; `normalize` is (mean, deviation).

    Step by step the arithmetic of the processors that work with Pillow: scaled in double precision,
    rounded to single, then normalized in single. Hence the values are theirs to the last bit.
    """
    levels = np.arange(LEVELS, dtype=np.float64)
    scaled = (levels if rescale is None else levels * rescale).astype(np.float32)
    table = np.repeat(scaled[None], CHANNELS, axis=0)
    if normalize is None:
        return table
    mean, std = (np.array(channels, np.float32)[:, None] for channels in normalize)
    normalized: npt.NDArray[np.float32] = (table - mean) / std
    return normalized


def cut(rgb: Rgb, table: Table, how: Cut) -> Values:
    """The picture's values, [N, C, t, ph, pw] or [N, ph, pw, C], each level looked up in `table`.

    H and W must be multiples of ph * m and pw * m. The work goes band by band, m patches high, so
    that the one intermediate array stays in the processor's cache.
    """
    height, width, _ = rgb.shape
    tall, wide = how.patch or (height, width)
    bands, columns = height // (tall * how.merge), width // (wide * how.merge)
    tiles = rgb.reshape(bands, how.merge, tall, columns, how.merge, wide, CHANNELS).transpose(0, 6, 3, 1, 4, 2, 5)
    shape = (bands, columns, how.merge, how.merge)
    if how.channels_last:
        out = np.empty((*shape, tall, wide, CHANNELS), table.dtype)
        rows = np.moveaxis(out, -1, 4)[:, :, :, :, :, None]
    else:
        out = np.empty((*shape, CHANNELS, how.temporal, tall, wide), table.dtype)
        rows = out
    # An index array of numpy's own index type: take() would convert any other to it, anew for each call.
    levels = np.empty(tiles.shape[2:], np.intp)
    for band in range(bands):
        for channel in range(CHANNELS):
            levels[...] = tiles[band, channel]
            rows[band, :, :, :, channel] = table[channel].take(levels, mode="clip")[:, :, :, None]
    return out.reshape(bands * columns * how.merge**2, *out.shape[4:])
