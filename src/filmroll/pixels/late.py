"""Late normalization: from the levels that travel to the values that a vision tower reads."""

from __future__ import annotations

import math

import numpy as np

from filmroll.pixels.patches import CHANNELS, Cut, Table, Values


def normalize(levels: Values, table: Table, how: Cut) -> Values:
    """What `cut` with this table gives, from what it gives for levels with one temporal copy.

    `levels` may have been given any shape since that leaves their order; where there are temporal
    copies to be made, the values of a patch are flat.
    """
    if how.channels_last:
        return np.asarray(table[np.arange(CHANNELS), levels.reshape(-1, CHANNELS)]).reshape(levels.shape)
    plane = math.prod(how.patch or levels.shape[-2:])
    planes = levels.reshape(-1, CHANNELS, plane)
    values = np.empty((len(planes), CHANNELS, how.temporal, plane), table.dtype)
    for channel in range(CHANNELS):
        values[:, channel] = table[channel].take(planes[:, channel])[:, None]
    return values.reshape(levels.shape if how.temporal == 1 else (len(levels), -1))
