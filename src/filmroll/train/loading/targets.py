"""The trained tokens of samples, one sample's behind another's, as tensors of what each stands for.

N = trained tokens of all samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from filmroll.materialize.device import sent
from filmroll.wire.training import TrainingSample

if TYPE_CHECKING:
    import torch


class Targets:
    """Lays what samples say out for their trained tokens, [N] a tensor."""

    def __init__(self, samples: Sequence[TrainingSample], device: torch.device) -> None:
        self._samples = samples
        self._device = device
        self._places = [sample.targets for sample in samples]
        self._counts = [len(places) for places in self._places]

    @property
    def places(self) -> torch.Tensor:
        """Where each token stands in its sample."""
        return self._tensor(np.concatenate(self._places))

    def gathered(self, name: str) -> torch.Tensor:
        """What its sample's array of this name says of each token."""
        pairs = zip(self._samples, self._places, strict=True)
        return self._tensor(np.concatenate([getattr(sample, name)[places] for sample, places in pairs]))

    def spread(self, values: Sequence[float], dtype: type[np.generic] = np.int64) -> torch.Tensor:
        """A value of each sample, for each of its tokens."""
        return self._tensor(np.repeat(np.asarray(values, dtype), self._counts))

    def _tensor(self, values: np.ndarray[Any, Any]) -> torch.Tensor:
        import torch

        return sent(torch.from_numpy(values), self._device)
