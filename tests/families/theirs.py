"""transformers' own processors, in a process of their own that has torchvision.

Whole processors of most families need torchvision, if only for videos. Its presence also changes what
transformers chooses by default, in the whole process: so the tests' own process stays as users have it.
"""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests import their_torchvision

SMALL = 4096
"""Arrays of more elements do not come back from where only the layout is asked for."""

Size = tuple[int, int]
"""(height, width), as processors have it."""
Arrays = dict[str, Any]


@dataclass(frozen=True)
class Refusal:
    """What a processor raised instead of an answer."""

    error: str


@dataclass(frozen=True)
class _Of:
    """Which processors, and how they are given images."""

    folder: str
    backend: str
    flat: bool

    def images(self, rows: list[list[Image.Image]]) -> list[Any]:
        return [image for row in rows for image in row] if self.flat else rows


class Theirs:
    """The processors of one checkpoint folder."""

    def __init__(self, pool: ProcessPoolExecutor, folder: Path, backend: str, *, flat: bool) -> None:
        self._pool, self._of = pool, _Of(str(folder), backend, flat)

    def counts(self, sizes: Sequence[Size]) -> list[int | Refusal]:
        """How many tokens an image of each size takes, by the processor's own arithmetic, without an image."""
        return self._call(_counts, list(sizes))

    def measured(self, text: str, sizes: Sequence[Size]) -> list[Arrays | Refusal]:
        """What the processor really makes of `text` and one image of each size, but for large arrays."""
        return self._call(_measured, text, list(sizes))

    def arrays(self, files: Sequence[bytes]) -> Arrays:
        """The image processor's arrays for some files, opened by Pillow, in one call."""
        return self._call(_arrays, list(files))

    def each(self, files: Sequence[bytes]) -> list[Arrays]:
        """The same in one call for each file."""
        return self._call(_each, list(files))

    def inputs(self, texts: Sequence[str], files: Sequence[Sequence[bytes]]) -> Arrays:
        """What a forward of the model takes: padded rows of tokens, and the images of each row."""
        return self._call(_inputs, list(texts), [list(row) for row in files])

    def chat(self, messages: Sequence[Any], files: Sequence[bytes], tools: Sequence[Any] | None, options: Any) -> Any:
        """The tokens of a conversation by the processor's own chat template; its images are `files`, in order."""
        return self._call(_chat, list(messages), list(files), tools, dict(options))

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._pool.submit(function, self._of, *args).result()


@contextmanager
def processors() -> Iterator[ProcessPoolExecutor]:
    if not their_torchvision.FOLDER.is_dir():
        raise RuntimeError(f"{their_torchvision.FOLDER} is missing: make sets it up")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_with_torchvision) as pool:
        yield pool


def _with_torchvision() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(1)
    their_torchvision.make_importable()
    import torchvision  # noqa: F401


@cache
def _processor(of: _Of) -> Any:
    from transformers import AutoImageProcessor, AutoProcessor

    processor = AutoProcessor.from_pretrained(of.folder)
    processor.image_processor = AutoImageProcessor.from_pretrained(of.folder, backend=of.backend)
    return processor


def _counts(of: _Of, sizes: list[Size]) -> list[int | Refusal]:
    processor = _processor(of)

    def count(size: Size) -> int:
        (number,) = processor._get_num_multimodal_tokens(image_sizes=[size]).num_image_tokens
        return int(number)

    return [_answer(count, size) for size in sizes]


def _measured(of: _Of, text: str, sizes: list[Size]) -> list[Arrays | Refusal]:
    processor = _processor(of)

    def measure(size: Size) -> Arrays:
        height, width = size
        images = of.images([[Image.new("RGB", (width, height))]])
        made = _processed(processor, images)
        made["input_ids"] = np.asarray(processor(text=[text], images=images)["input_ids"][0])
        return {name: array for name, array in made.items() if name == "input_ids" or array.size <= SMALL}

    return [_answer(measure, size) for size in sizes]


def _answer(function: Callable[[Size], Any], size: Size) -> Any:
    try:
        return function(size)
    except Exception as error:  # noqa: BLE001  # whatever it is, the processor has no answer
        return Refusal(repr(error))


def _arrays(of: _Of, files: list[bytes]) -> Arrays:
    images = of.images([[Image.open(io.BytesIO(file)) for file in files]])
    return _processed(_processor(of), images)


def _processed(processor: Any, images: list[Any]) -> Arrays:
    """The image processor's arrays, told what the processor of images and text tells it."""
    told = processor._merge_kwargs(tokenizer_init_kwargs=processor.tokenizer.init_kwargs)["images_kwargs"]
    arrays, _ = processor._process_images(images, **{**told, "return_tensors": "np"})
    return {name: np.asarray(array) for name, array in arrays.items()}


def _each(of: _Of, files: list[bytes]) -> list[Arrays]:
    return [_arrays(of, [file]) for file in files]


def _chat(of: _Of, messages: list[Any], files: list[bytes], tools: Any, options: dict[str, Any]) -> list[int]:
    processor, images = _processor(of), [Image.open(io.BytesIO(file)) for file in files]
    if of.flat:
        # Called with messages, it would put the images into a list of their own.
        text = processor.apply_chat_template(messages, tools=tools, add_generation_prompt=True, **options)
        made = processor(text=[text], images=images or None)
    else:
        left = iter(images)
        for part in (part for message in messages if message.get("content") for part in message["content"]):
            if part["type"] == "image":
                part["image"] = next(left)
        how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
        made = processor.apply_chat_template(messages, tools=tools, **how, **options)
    (ids,) = made["input_ids"]
    return [int(token) for token in ids]


def _inputs(of: _Of, texts: list[str], files: list[list[bytes]]) -> Arrays:
    images = of.images([[Image.open(io.BytesIO(file)) for file in row] for row in files])
    # Some processors pad on the left unless the call says otherwise, whatever their tokenizer is set to.
    made = _processor(of)(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
    return {name: array.numpy() for name, array in made.items()}
