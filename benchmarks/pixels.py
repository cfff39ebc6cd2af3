"""From a file's bytes to a model's tensors: filmroll beside transformers' two image processors.

    python benchmarks/pixels.py

Every way gets the same bytes and gives pixel_values of the same shape: float32 equal to the
processor of that backend, bfloat16 the same rounded, uint8 the levels that a reader normalizes on
its device. All ways take turns picture by picture, in one run; medians are compared. One thread, and two:
two threads are two pictures at once, as a loader has them.

torchvision is taken from where `make` puts it for the tests.
"""

from __future__ import annotations

import io
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from harness import conclude, show
from PIL import Image

from filmroll.families.base import Family, Placeholders
from filmroll.families.qwen_vl import QwenVL, QwenVLSettings
from filmroll.families.recipe import Backend
from filmroll.pixels.decode import decoding

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.their_torchvision import make_importable

ROUNDS = 15
SHORT = {
    "transformers, pil": "theirs, pil",
    "transformers, torchvision": "theirs, tv",
    **{
        f"filmroll {dtype}, {backend}": f"{short} {tail}"
        for dtype, short in (("float32", "f32"), ("bfloat16", "bf16"), ("uint8", "u8"))
        for backend, tail in (("pil", "pil"), ("torchvision", "tv"))
    },
}
THREADS = (1, 2)
BACKENDS: tuple[Backend, ...] = ("pil", "torchvision")
PLACEHOLDERS = Placeholders(image=1, unsampled=(1,), texts=())


@dataclass(frozen=True)
class Task:
    """Pictures of one size under one configuration."""

    name: str
    width: int
    height: int
    resized: bool
    settings: QwenVLSettings


TASKS = (
    Task("1024x1024", 1024, 1024, False, QwenVLSettings(patch_size=16, min_pixels=65536, max_pixels=16777216)),
    Task("1024x1024 to 768", 1024, 1024, True, QwenVLSettings(patch_size=16, min_pixels=65536, max_pixels=768**2)),
    Task("1024x1024, Qwen2-VL", 1024, 1024, True, QwenVLSettings()),
    Task("1920x1080", 1920, 1080, True, QwenVLSettings(patch_size=16, min_pixels=65536, max_pixels=16777216)),
)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Half a page of flat windows, half a noisy photograph."""
    draw = np.random.default_rng(seed)
    small = draw.integers(0, 256, (height // 32 + 1, width // 32 + 1, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((width, height), 3)) + draw.normal(0, 6, (height, width, 3))
    pixels = pixels.clip(0, 255).astype(np.uint8)
    for _ in range(60):
        top, left = draw.integers(0, height), draw.integers(0, width // 2)
        pixels[top : top + 60, left : min(left + 300, width // 2)] = draw.integers(0, 256, 3)
    return Image.fromarray(pixels)


def file(image: Image.Image, form: str) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **({"quality": 90} if form == "JPEG" else {}))
    return out.getvalue()


def processor(kind: str, settings: QwenVLSettings) -> Any:
    if kind == "pil":
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil as Processor
    else:
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor as Processor
    size = {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}
    return Processor(patch_size=settings.patch_size, size=size)


def theirs(kind: str, settings: QwenVLSettings) -> Callable[[bytes], Any]:
    process = processor(kind, settings)
    return lambda data: process([Image.open(io.BytesIO(data))], return_tensors="pt")["pixel_values"]


def ours(family: Family, dtype: Any) -> Callable[[bytes], Any]:
    def develop(data: bytes) -> Any:
        with decoding(data, max_pixels=1 << 26) as rgb:
            return family.pixels([rgb], dtype)["pixel_values"]

    return develop


def decode_alone(data: bytes) -> None:
    with decoding(data, max_pixels=1 << 26):
        pass


def ways(settings: QwenVLSettings) -> dict[str, Callable[[bytes], Any]]:
    made = {"transformers, pil": theirs("pil", settings), "transformers, torchvision": theirs("torchvision", settings)}
    for backend in BACKENDS:
        family = QwenVL(replace(settings, backend=backend), placeholders=PLACEHOLDERS)
        for dtype in ("float32", "bfloat16", "uint8"):
            made[f"filmroll {dtype}, {backend}"] = ours(family, dtype)
    return made


def check_equal(made: dict[str, Callable[[bytes], Any]], data: bytes) -> None:
    """Nothing is timed that does not give the processor's values."""
    for backend in BACKENDS:
        apart = np.abs(made[f"filmroll float32, {backend}"](data) - made[f"transformers, {backend}"](data).numpy())
        if apart.max() > 1e-6:
            raise SystemExit(f"the {backend} values are {apart.max()} from the processor's")


def measure(task: Task, form: str, threads: int) -> dict[str, float]:
    """Median milliseconds a picture, for decoding alone and for every way."""
    data = file(picture(task.width, task.height), form)
    made = ways(task.settings)
    if threads == 1:
        check_equal(made, data)
    made = {"decoding alone": decode_alone, **made}
    times: dict[str, list[float]] = {name: [] for name in made}
    with ThreadPoolExecutor(threads) as pool:
        for number in range(ROUNDS + 1):
            for name, way in made.items():
                started = time.perf_counter()
                list(pool.map(way, [data] * threads))
                if number:  # The first round warms caches.
                    times[name].append((time.perf_counter() - started) / threads)
    return {name: 1000 * statistics.median(taken) for name, taken in times.items()}


def main() -> None:
    torch.set_num_threads(1)
    make_importable()
    measure(TASKS[0], "JPEG", 1)  # A process's first pictures cost more, theirs most of all.
    alone: dict[tuple[str, str], dict[str, float]] = {}
    for threads in THREADS:
        columns = {(task.name, form): measure(task, form, threads) for task in TASKS for form in ("JPEG", "PNG")}
        show(
            f"Milliseconds a picture, {threads} thread{'s' * (threads > 1)}",
            ["", *(SHORT.get(name, name) for name in next(iter(columns.values())))],
            [
                [f"{name} {form}", *(f"{value:.1f}" for value in found.values())]
                for (name, form), found in columns.items()
            ],
        )
        if threads == 1:
            alone = columns
    plain = [alone[task.name, form] for task in TASKS if not task.resized for form in ("JPEG", "PNG")]
    resized = [alone[task.name, form] for task in TASKS if task.resized for form in ("JPEG", "PNG")]

    def gain(columns: list[dict[str, float]], dtype: str, backend: str) -> float:
        """How many times faster, the geometric mean over sizes and file formats."""
        ratios = [one[f"transformers, {backend}"] / one[f"filmroll {dtype}, {backend}"] for one in columns]
        return statistics.geometric_mean(ratios)

    conclude(
        "pixels",
        {
            "f32_vs_pil": gain(plain, "float32", "pil"),
            "f32_vs_torchvision": gain(plain, "float32", "torchvision"),
            "resize_f32_vs_pil": gain(resized, "float32", "pil"),
            "resize_f32_vs_torchvision": gain(resized, "float32", "torchvision"),
            "u8_vs_pil": gain(plain, "uint8", "pil"),
            "u8_vs_torchvision": gain(plain, "uint8", "torchvision"),
            "decode_share": statistics.mean(one["decoding alone"] / one["filmroll float32, pil"] for one in plain),
        },
        {
            "f32_vs_pil": (">=", 4),
            "f32_vs_torchvision": (">=", 1.7),
            "resize_f32_vs_pil": (">=", 3),
            "resize_f32_vs_torchvision": (">=", 1.3),
            "u8_vs_pil": (">=", 7),
            "u8_vs_torchvision": (">=", 2.8),
        },
    )


if __name__ == "__main__":
    main()
