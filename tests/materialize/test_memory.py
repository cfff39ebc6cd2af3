"""What materializing takes; benchmarks/pixel_memory.py measures resident memory at full size."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

from filmroll.families.qwen_vl import QwenVL
from filmroll.image import ImageRef
from filmroll.materialize import Materializer

IMAGES, SIDE = 32, 256


def test_what_is_materialized_takes_its_pixels_and_little_more(
    store: Any, family: QwenVL, put: Callable[..., ImageRef]
) -> None:
    first, *rest = [family.describe(put(seed, SIDE, SIDE)) for seed in range(IMAGES + 1)]
    loader = Materializer(store, family)
    loader.load([first])
    tracemalloc.start()
    try:
        loaded = loader.load(rest)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    pixels = len(loaded.pictures) * SIDE * SIDE * 3
    assert pixels < peak < 1.3 * pixels
