"""From a picture to the rows of patches that a vision tower reads.

H, W = height and width in pixels; p = patch side; m = merge side, in patches; t = temporal copies;
C = 3 channels; h, w = grid in patches (h = H / p, w = W / p); N = h * w patches.

A row of patches is laid out as [C, t, p, p]. Patches that the model will merge into one token stand
next to each other: row order is [h / m, w / m, m, m].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

Rgb = npt.NDArray[np.uint8]
Table = npt.NDArray[np.float32]
Channels = tuple[float, float, float]

CHANNELS = 3
LEVELS = 256


def resize(rgb: Rgb, height: int, width: int, resample: int) -> Rgb:
    """The picture [H, W, C] at another size, by one of Pillow's filters; the same picture if the size is its own."""
    if rgb.shape[:2] == (height, width):
        return rgb
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling(resample)))


def level_table(rescale: float | None, normalize: tuple[Channels, Channels] | None = None) -> Table:
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
    normalized: Table = (table - mean) / std
    return normalized


def patchify(rgb: Rgb, table: Table, out: npt.NDArray[np.float32], *, patch: int, merge: int, temporal: int) -> None:
    """Write the picture's patches into `out`, [N, C * t * p * p], each level looked up in `table`.

    H and W must be multiples of p * m. The work goes band by band, m patches high, so that the one
    intermediate array stays in the processor's cache.
    """
    height, width, _ = rgb.shape
    bands, columns = height // (patch * merge), width // (patch * merge)
    tiles = rgb.reshape(bands, merge, patch, columns, merge, patch, CHANNELS).transpose(0, 6, 3, 1, 4, 2, 5)
    rows = out.reshape(bands, columns, merge, merge, CHANNELS, temporal, patch, patch)
    # An index array of numpy's own index type: take() would convert any other to it, anew for each call.
    levels = np.empty(tiles.shape[2:], np.intp)
    for band in range(bands):
        for channel in range(CHANNELS):
            levels[...] = tiles[band, channel]
            rows[band, :, :, :, channel] = table[channel].take(levels, mode="clip")[:, :, :, None]
