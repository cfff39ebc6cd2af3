"""Decoders of other houses, each in a process of its own: how a reader that is not ours sees a file.

torchvision is built against torch for CUDA, and a torchvision that cannot be imported makes transformers' image
processors fail as well. So it lies outside of site-packages, and no test's own process ever sees it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import multiprocessing
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytest

from tests import their_torchvision

Rgb: TypeAlias = npt.NDArray[np.uint8]
Oracle: TypeAlias = Callable[[list[bytes]], "list[Rgb | str]"]
"""What a decoder sees in each file, [height, width, 3], or why it sees nothing."""

_CUDA_LIBRARIES = ("libc10_cuda.so", "libtorch_cuda.so")


@contextmanager
def torchvision_oracle() -> Iterator[Oracle]:
    """torchvision's decode_image and read_image; skips where its image extension cannot be loaded."""
    if not (their_torchvision.FOLDER / "torchvision").is_dir():
        pytest.skip(f"torchvision is not in {their_torchvision.FOLDER}; the Makefile puts it there")
    with _process() as pool:
        trouble = pool.submit(_load_torchvision).result()
        if trouble:
            pytest.skip(f"torchvision's image extension cannot be loaded: {trouble}")
        yield lambda files: pool.submit(_torchvision_sees, files).result()


@contextmanager
def vllm_oracle() -> Iterator[Oracle]:
    """vLLM's own reading of images; skips where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    with _process() as pool:
        yield lambda files: pool.submit(_vllm_sees, files).result()


@contextmanager
def _process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def _load_torchvision() -> str:
    """Nothing if all is well, or what is wrong."""
    import torch

    their_torchvision.make_importable()
    if not torch.backends.cuda.is_built():
        trouble = _stand_in_for_cuda(their_torchvision.FOLDER / "torchvision" / "image.so")
        if trouble:
            return trouble
    import torchvision.io.image

    if not torchvision.io.image._has_image_ops():
        return "set TORCHVISION_WARN_WHEN_EXTENSION_LOADING_FAILS=1 to see why"
    return ""


def _stand_in_for_cuda(extension: Path) -> str:
    """Load two libraries with the names that the extension asks for, and functions that nobody will call.

    They are loaded before the extension, which then takes them for the real ones.
    """
    try:
        listed = subprocess.run(["nm", "-D", "--undefined-only", extension], check=True, capture_output=True, text=True)
        names = [line.split()[-1] for line in listed.stdout.splitlines() if "4cuda" in line]
        source = "".join(
            f'void f{at}(void) __asm__("{name}"); void f{at}(void) {{}}\n' for at, name in enumerate(names)
        )
        with tempfile.TemporaryDirectory() as folder:
            for library in _CUDA_LIBRARIES:
                path = f"{folder}/{library}"
                command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", path, "-x", "c", "-"]
                subprocess.run(command, check=True, capture_output=True, input=source, text=True)
                ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"torch is built without CUDA, and nothing can be built in its place: {error}"
    return ""


def _torchvision_sees(files: list[bytes]) -> list[Rgb | str]:
    import torch
    from torchvision.io import decode_image, read_image

    def see(data: bytes) -> Rgb:
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            seen = read_image(file.name, mode="RGB")
        again = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="RGB")
        assert torch.equal(seen, again)
        # With orientation and without: canonical bytes leave no choice.
        turned = decode_image(
            torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="RGB", apply_exif_orientation=True
        )
        assert torch.equal(seen, turned)
        return np.ascontiguousarray(seen.permute(1, 2, 0).numpy())

    return [_tried(see, data) for data in files]


def _vllm_sees(files: list[bytes]) -> list[Rgb | str]:
    from vllm.multimodal.media import ImageMediaIO

    reader = ImageMediaIO()

    def see(data: bytes) -> Rgb:
        image = reader.load_bytes(data)
        return np.asarray(getattr(image, "media", image))

    return [_tried(see, data) for data in files]


def _tried(see: Callable[[bytes], Rgb], data: bytes) -> Rgb | str:
    try:
        return see(data)
    except Exception as error:  # noqa: BLE001 - a decoder raises what it likes; what it says is compared
        return f"{type(error).__name__}: {error}"
