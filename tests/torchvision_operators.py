"""Imported once, it lets torchvision be imported where torch is built for CPUs and torchvision for CUDA.

The registries' torchvision is: its Python half describes two operators that its CUDA library would
define. This file is also put into environments that have no tests, so it imports nothing of them.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder


class DefineOperators(MetaPathFinder):
    """Defines torchvision's missing operators right before torchvision is imported."""

    library = None
    """Until the process ends: what torch has learned of operators goes with the object that taught it."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name != "torchvision" or self.library is not None:
            return
        import torch

        if not torch.backends.cuda.is_built():
            DefineOperators.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, DefineOperators())
