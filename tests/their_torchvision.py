"""torchvision for CPUs: where the Makefile puts it.

In a process that imports it transformers chooses other processors by default, so that should be a
process of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "oracles"


def make_importable() -> None:
    """Let this process import torchvision."""
    sys.path.append(str(FOLDER))
    import tests.torchvision_operators  # noqa: F401
