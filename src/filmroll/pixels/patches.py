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

from filmroll.pixels.kernels import compiled

Rgb = npt.NDArray[np.uint8]
Values = npt.NDArray[np.generic]
"""Of the table's own type: float32, bfloat16, or the uint8 levels themselves."""
Table = npt.NDArray[np.generic]
"""[C, 256]: what each level of each channel becomes, in two or four bytes."""
Channels = tuple[float, float, float]

CHANNELS = 3
LEVELS = 256


@dataclass(frozen=True, slots=True)
class Cut:
    """How a picture is cut; `patch` is (height, width), None for a picture that stays whole."""

    patch: tuple[int, int] | None = None
    merge: int = 1
    temporal: int = 1
    channels_last: bool = False


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


def cut_shape(height: int, width: int, how: Cut) -> tuple[int, ...]:
    """The shape of what `cut` gives for a picture of this size."""
    tall, wide = how.patch or (height, width)
    count = (height // (tall * how.merge)) * (width // (wide * how.merge)) * how.merge**2
    return (count, tall, wide, CHANNELS) if how.channels_last else (count, CHANNELS, how.temporal, tall, wide)


def cut(rgb: Rgb, table: Table | None, how: Cut) -> Values:
    """The picture's values, [N, C, t, ph, pw] or [N, ph, pw, C], each level looked up in `table`.

    Without a table they are the levels themselves, uint8, to be normalized later. H and W must be
    multiples of ph * m and pw * m.
    """
    height, width, _ = rgb.shape
    tall, wide = how.patch or (height, width)
    bands, columns = height // (tall * how.merge), width // (wide * how.merge)
    out = np.empty(cut_shape(height, width, how), np.uint8 if table is None else table.dtype)
    if compiled is None:
        _cut(rgb, table, out.reshape(bands, columns, how.merge, how.merge, *out.shape[1:]), how)
    else:
        numbers = (bands, columns, how.merge, tall, wide, how.temporal, how.channels_last)
        # Bytes, because no buffer says bfloat16.
        compiled.cut(
            np.ascontiguousarray(rgb),
            None if table is None else np.ascontiguousarray(table).view(np.uint8),
            out.view(np.uint8),
            numbers,
            out.itemsize,
        )
    return out


def _cut(rgb: Rgb, table: Table | None, out: Values, how: Cut) -> None:
    """`cut` by numpy alone, into [h / m, w / m, m, m, ...].

    Band by band, m patches high, so that the one intermediate array stays in the processor's cache.
    """
    bands, columns, merge = out.shape[:3]
    tall, wide = how.patch or rgb.shape[:2]
    tiles = rgb.reshape(bands, merge, tall, columns, merge, wide, CHANNELS).transpose(0, 6, 3, 1, 4, 2, 5)
    rows = np.moveaxis(out, -1, 4)[:, :, :, :, :, None] if how.channels_last else out
    if table is None:
        rows[...] = np.moveaxis(tiles, 1, 4)[:, :, :, :, :, None]
        return
    # An index array of numpy's own index type: take() would convert any other to it, anew for each call.
    levels = np.empty(tiles.shape[2:], np.intp)
    for band in range(bands):
        for channel in range(CHANNELS):
            levels[...] = tiles[band, channel]
            rows[band, :, :, :, channel] = table[channel].take(levels, mode="clip")[:, :, :, None]
