"""torchvision for CPUs: where the Makefile puts it, and what it lacks there.

The registry's torchvision is built against torch for CUDA: two operators that its Python half only
describes must exist before it is imported. In a process that imports it transformers chooses other
processors by default, so that should be a process of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "oracles"

_kept: list[object] = []
"""Until the process ends: what torch has learned of operators goes with the object that taught it."""


def make_importable() -> None:
    """Let this process import torchvision."""
    import torch

    sys.path.append(str(FOLDER))
    if torch.backends.cuda.is_built():
        return
    library = torch.library.Library("torchvision", "DEF")
    _kept.append(library)
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
