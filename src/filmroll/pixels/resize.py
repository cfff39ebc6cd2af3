"""Pictures at another size, exactly as Pillow resizes them. H, W = height and width; C = 3 channels.

Pillow is what transformers' PIL processors resize with. Its values have changed once: since 13.0 a
picture that loses more than twice as many rows as columns is shrunk downwards first, and the 8 bits
between the two passes show it. The compiled loop follows 13.0; so does Pillow itself, in the versions
that filmroll asks for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from filmroll.pixels.kernels import compiled

Rgb = npt.NDArray[np.uint8]

NEAREST = 0


def resize(rgb: Rgb, height: int, width: int, resample: int) -> Rgb:
    """The picture [H, W, C] at another size, by one of Pillow's filters; the same picture if the size is its own."""
    old_height, old_width, _ = rgb.shape
    if (old_height, old_width) == (height, width):
        return rgb
    if compiled is None or resample == NEAREST:
        return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling(resample)))
    out = np.empty((height, width, 3), np.uint8)
    compiled.resize(np.ascontiguousarray(rgb), old_height, old_width, out, height, width, resample)
    return out
