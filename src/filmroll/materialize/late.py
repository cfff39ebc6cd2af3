"""Late normalization where the model is: levels go there, an eighth of the values that they become.

N = patches, C = 3 channels, t = temporal copies, P = pixels of a patch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from filmroll.pixels.patches import CHANNELS, Cut

if TYPE_CHECKING:
    import torch


def normalize(levels: torch.Tensor, table: torch.Tensor, how: Cut) -> torch.Tensor:
    """What `pixels.late.normalize` gives, on the tensors' own device.

    A level's value is looked up in the same table [C, 256], so no device has a say in it.
    """
    import torch

    if how.channels_last:
        flat = levels.reshape(-1, CHANNELS).int()
        columns = [table[channel].index_select(0, flat[:, channel]) for channel in range(CHANNELS)]
        return torch.stack(columns, dim=-1).view(levels.shape)
    planes = levels.reshape(-1, CHANNELS, math.prod(how.patch or levels.shape[-2:]))  # [N, C, P]
    values = table.new_empty((len(planes), CHANNELS, how.temporal, planes.shape[-1]))
    for channel in range(CHANNELS):
        plane = planes[:, channel]
        values[:, channel] = table[channel].index_select(0, plane.reshape(-1).int()).view(len(plane), 1, -1)
    return values.reshape(levels.shape if how.temporal == 1 else (len(levels), -1))
