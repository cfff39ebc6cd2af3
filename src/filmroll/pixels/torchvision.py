"""As transformers' torchvision processors do it: resizing by torch, and rescaling fused with normalizing.

Only resizing needs torch, which is imported where it is done. H, W = height and width; C = 3 channels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from filmroll.errors import ConfigError
from filmroll.pixels.patches import CHANNELS, LEVELS, Channels, Rgb

MODES = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""torch's names of Pillow's filters, where torchvision resizes levels themselves and not floats."""


def resize(rgb: Rgb, height: int, width: int, resample: int) -> Rgb:
    """The picture [H, W, C] at another size, as torchvision resizes it; the same picture if the size is its own."""
    if rgb.shape[:2] == (height, width):
        return rgb
    try:
        import torch
    except ModuleNotFoundError:
        raise ConfigError(
            "pictures of this model are resized by torch, which is not installed", remedy="Install filmroll[torch]"
        ) from None
    picture = torch.from_numpy(np.require(rgb, requirements=["C", "W"])).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(picture, size=(height, width), mode=MODES[resample], antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def level_table(rescale: float | None, normalize: tuple[Channels, Channels] | None = None) -> npt.NDArray[np.float32]:
    """[C, 256]: the float that each 8 bit level of each channel becomes; `normalize` is (mean, deviation).

    All in single precision: where both are asked for, mean and deviation are scaled instead of the level.
    """
    levels = np.arange(LEVELS, dtype=np.float32)
    scale = np.float32(1 if rescale is None else rescale)
    if normalize is None:
        return np.repeat((levels * scale)[None], CHANNELS, axis=0)
    unscale = np.float32(1 if rescale is None else 1 / rescale)
    mean, std = (np.array(channels, np.float32)[:, None] * unscale for channels in normalize)
    table: npt.NDArray[np.float32] = (levels - mean) / std
    return table
