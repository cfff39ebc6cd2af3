from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filmroll.families.base import Placeholders
from filmroll.families.qwen_vl import QwenVL, QwenVLSettings
from filmroll.image import ImageRef
from filmroll.store import Store
from filmroll.store.shelves.files import FileShelf


class CountingStore(Store):
    """A file store that remembers which images were read from it."""

    def __init__(self, root: Any, limits: Any = None) -> None:
        super().__init__(FileShelf(root), limits)
        self.root = Path(root)
        self.reads: list[str] = []

    def read(self, ref: ImageRef) -> bytes:
        self.reads.append(ref.sha256)
        return super().read(ref)


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(tmp_path / "images")


@pytest.fixture(scope="session")
def family() -> QwenVL:
    settings = QwenVLSettings(patch_size=16, min_pixels=1024, max_pixels=2**20)
    return QwenVL(settings, placeholders=Placeholders(image=9, unsampled=(9,), texts=()))


@pytest.fixture
def put(store: CountingStore) -> Callable[..., ImageRef]:
    """Stores a picture of noise; the same arguments are the same picture."""

    def put(seed: int, width: int = 64, height: int = 32) -> ImageRef:
        return store.put(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))

    return put
