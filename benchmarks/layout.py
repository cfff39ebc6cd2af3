"""From a stored image to its descriptor, without its pixels, beside running the model's image processor.

    python benchmarks/layout.py

A writer knows an image's size from the header that `put` has read; `describe` is what each image of
each turn costs then. Reading the header of bytes never seen before means walking the whole file, so
that a truncated one is found; it is shown by itself, for a JPEG and a PNG of 1024x1024.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from functools import partial

from harness import conclude, show
from PIL import Image
from pixels import PLACEHOLDERS, file, picture
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from filmroll.families.qwen_vl import QwenVL, QwenVLSettings
from filmroll.image import ImageRef
from filmroll.store.formats.header import Limits, read_header
from filmroll.store.ingest.canonical import canonical

ROUNDS = 15


def microseconds(act: Callable[[], object], times: int) -> float:
    """The median of some rounds of `times` calls each."""
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(times):
            act()
        taken.append((time.perf_counter() - started) / times)
    return 1e6 * statistics.median(taken)


def main() -> None:
    settings = QwenVLSettings(patch_size=16, min_pixels=65536, max_pixels=16777216)
    family = QwenVL(settings, placeholders=PLACEHOLDERS)
    processor = Qwen2VLImageProcessorPil(patch_size=16, size={"shortest_edge": 65536, "longest_edge": 16777216})

    def process(data: bytes) -> object:
        return processor([Image.open(io.BytesIO(data))], return_tensors="np")

    rows, describing, processing = [], [], []
    for form in ("JPEG", "PNG"):
        data = file(picture(1024, 1024), form)
        image = canonical(data)
        ref = ImageRef(f"file:///{image.sha256}", image.sha256, image.media_type, image.width, image.height, len(data))
        describing.append(microseconds(partial(family.describe, ref), 300))
        processing.append(microseconds(partial(process, data), 1))
        walking = microseconds(partial(read_header, data, Limits()), 20)
        rows.append([f"{form}, {len(data):,} bytes", describing[-1], walking, processing[-1]])
    show("Microseconds", ["", "ImageRef to descriptor", "walking the file once", "the processor"], rows)
    conclude(
        "layout",
        {"header_us": max(describing), "layout_speedup": min(processing) / max(describing)},
        {"header_us": ("<=", 60), "layout_speedup": (">=", 400)},
    )


if __name__ == "__main__":
    main()
