"""From a stored image to its levels, decoded or read from a file of features: what the files are worth.

    python benchmarks/features.py

Both are as a materializer that has not seen the image does them, from a local store in the page cache. A
bucket's latency would come on top of decoding, and not on top of a file.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from harness import conclude, show
from pixels import PLACEHOLDERS, file, picture

from filmroll.families.qwen_vl import QwenVL, QwenVLSettings
from filmroll.materialize.features import Features
from filmroll.materialize.materializer import Materializer
from filmroll.store import open_store

ROUNDS = 25


def milliseconds(act: Callable[[], object]) -> float:
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        act()
        taken.append(time.perf_counter() - started)
    return 1000 * statistics.median(taken)


def main() -> None:
    rows, figures = [], {}
    for what, form, size, most in (
        ("JPEG", "JPEG", 1024, 2**24),
        ("PNG", "PNG", 1024, 2**24),
        ("JPEG, to 768", "JPEG", 1024, 768**2),
        ("PNG, to 768", "PNG", 1024, 768**2),
        ("PNG of 4096, to 1024", "PNG", 4096, 2**20),
    ):
        family = QwenVL(QwenVLSettings(patch_size=16, min_pixels=65536, max_pixels=most), placeholders=PLACEHOLDERS)
        with tempfile.TemporaryDirectory() as folder:
            store = open_store(Path(folder) / "images")
            descriptor = family.describe(store.put(file(picture(size, size), form)))
            features = Features(Path(folder) / "features", family)
            decoding = Materializer(store, family, cache_bytes=0)
            reading = Materializer(store, family, cache_bytes=0, features=features)
            reading.load([descriptor])
            features.flush()
            (written,) = Path(folder).rglob("*.msgpack")
            decoded = milliseconds(lambda: decoding.load([descriptor]))  # noqa: B023
            read = milliseconds(lambda: reading.load([descriptor]))  # noqa: B023
            rows.append([what, decoded, read, decoded / read, descriptor.image.nbytes, written.stat().st_size])
            figures[what] = decoded / read
    show(
        "Milliseconds from a reference to levels",
        ["an image of 1024x1024", "decoded", "from a file", "times", "image's bytes", "file's bytes"],
        rows,
    )
    conclude("features", {"least": min(figures.values()), "most": max(figures.values())}, {})


if __name__ == "__main__":
    main()
