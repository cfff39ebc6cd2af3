"""Peak memory of 64 images of 1024x1024 that a reader materializes: levels, as filmroll keeps them, beside float32.

    python benchmarks/pixel_memory.py

Each measurement is a process of its own that opens the same store, half JPEG and half PNG, and keeps
every picture. What counts is the highest resident memory while it works, as Linux counts it for this process
alone (what getrusage says begins with its parent's), less what the process took before its first picture was
kept; it is divided by the bytes of the images' pixels, 3.1 MB each.
"""

from __future__ import annotations

import gc
import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from harness import conclude, in_process, show
from pixels import PLACEHOLDERS, file, picture

from filmroll.families.qwen_vl import QwenVL, QwenVLSettings
from filmroll.image import ImageRef
from filmroll.materialize import Materializer
from filmroll.pixels.decode import decode
from filmroll.store import open_store

IMAGES, SIDE = 64, 1024
PIXEL_BYTES = IMAGES * SIDE * SIDE * 3
FAMILY = QwenVL(QwenVLSettings(patch_size=16, min_pixels=65536, max_pixels=16777216), placeholders=PLACEHOLDERS)


def keep_levels(folder: str, refs: list[ImageRef]) -> Any:
    """What engine and trainer do: references to verified pictures in the materializer's cache."""
    materializer = Materializer(open_store(folder), FAMILY, cache_bytes=2 * PIXEL_BYTES)
    materializer.load([FAMILY.describe(ref) for ref in refs])
    return materializer


def keep_values(folder: str, refs: list[ImageRef]) -> Any:
    """The same pictures as the model's float32 values, each made by itself."""
    store = open_store(folder)
    return [FAMILY.pixels([decode(store.read(ref), max_pixels=SIDE**2)]) for ref in refs]


KEEPERS: dict[str, Callable[[str, list[ImageRef]], Any]] = {"levels": keep_levels, "values": keep_values}


def measure(keeper: str, folder: str) -> dict[str, int]:
    refs = [ImageRef(**fields) for fields in json.loads((Path(folder) / "refs.json").read_text())]
    keep = KEEPERS[keeper]
    # Libraries, tables and the allocator's own memory; of one image, whose pixels are gone afterwards.
    keep(folder, refs[:1])
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    kept = keep(folder, refs)
    after = process.memory_info().rss
    (high_water,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    peak = 1024 * int(high_water)
    del kept
    return {"peak": peak - before, "held": after - before}


def peaks() -> dict[str, dict[str, int]]:
    """What each keeper takes, bytes at its peak and at its end."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        refs = [store.put(file(picture(SIDE, SIDE, seed), ("JPEG", "PNG")[seed % 2])) for seed in range(IMAGES)]
        fields = [{name: getattr(ref, name) for name in ref.__struct_fields__} for ref in refs]
        (Path(folder) / "refs.json").write_text(json.dumps(fields))
        return {keeper: in_process(__file__, keeper, folder) for keeper in KEEPERS}


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(measure(*sys.argv[1:])))
        return
    found = peaks()
    show(
        f"MB of {IMAGES} images, {PIXEL_BYTES / 1e6:.0f} MB of pixels",
        ("", "peak", "held", "peak over pixels"),
        [
            (name, *(one[key] / 1e6 for key in ("peak", "held")), one["peak"] / PIXEL_BYTES)
            for name, one in found.items()
        ],
    )
    conclude(
        "pixel_memory",
        {
            "u8_peak_over_pixels": found["levels"]["peak"] / PIXEL_BYTES,
            "f32_peak_over_pixels": found["values"]["peak"] / PIXEL_BYTES,
        },
        {"u8_peak_over_pixels": ("<=", 1.3)},
    )


if __name__ == "__main__":
    main()
