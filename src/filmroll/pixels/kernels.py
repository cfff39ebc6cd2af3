"""The compiled loops, or None where they could not be built: everything then works without, at another pace."""

from __future__ import annotations

from types import ModuleType

compiled: ModuleType | None
try:
    from filmroll.pixels import _kernels as compiled  # type: ignore[attr-defined, no-redef]
except ImportError:
    compiled = None
