"""The oracle's way to feed a model: every image at every place, nothing shared, nothing hooked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from filmroll.families import Family
from filmroll.materialize.feed import model_inputs
from filmroll.materialize.sheet import Sheet


def plain_inputs(family: Family, rows: Sequence[Any], arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Keyword arguments as transformers documents them."""
    inputs = model_inputs(family, rows, Sheet.of([]), pad="right")
    return inputs | {name: torch.tensor(array) for name, array in arrays.items()}
