"""The ways to carry pictures to an engine, and a conversation that is carried one way."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from filmroll.families import Family
from filmroll.store import Store
from filmroll.wire.reference import write_reference

RAW_VIEW = 3
"""How vLLM marks an array's bytes."""


@dataclass(frozen=True)
class Desk:
    """What requests are made with."""

    model: Path
    family: Family
    store: Store
    begin: int
    end: int


@dataclass(frozen=True)
class Sent:
    """A picture's part of a request, kept from turn to turn."""

    name: str
    tokens: int
    part: Any


def by_reference(desk: Desk, data: bytes) -> Sent:
    descriptor = desk.family.describe(desk.store.put(data))
    return Sent(descriptor.image.sha256, descriptor.tokens, write_reference(descriptor))


def by_address(desk: Desk, data: bytes) -> Sent:
    image = desk.store.put(data)
    return Sent("", 1, {"type": "image_url", "url": image.uri, "uuid": f"{image.sha256}-{desk.family.recipe}"})


def as_data_uri(_desk: Desk, data: bytes) -> Sent:
    return Sent("", 1, {"type": "image_url", "url": f"data:image/png;base64,{base64.b64encode(data).decode()}"})


def as_tensors(desk: Desk, data: bytes) -> Sent:
    with Image.open(io.BytesIO(data)) as picture:
        made = _processor(desk.model)(
            images=[picture.convert("RGB")], do_rescale=False, do_normalize=False, return_tensors="np"
        )
    patches, (grid,) = made["pixel_values"], made["image_grid_thw"]
    flat = {"keep_on_cpu": False, "slices": [[[0, len(patches), None]]], "dim": 0}
    item = {
        "pixel_values": {"data": _array(patches), "field": ["flat", flat]},
        "image_grid_thw": {"data": _array(grid), "field": ["batched", {"keep_on_cpu": True}]},
    }
    layout = desk.family.layout(*picture.size)
    name = f"tensors-{time.monotonic_ns()}"
    return Sent(name, layout.tokens, base64.b64encode(msgspec.msgpack.encode(item)).decode())


@cache
def _processor(model: Path) -> Any:
    """The checkpoint's own image processor, as clients of vLLM run it: of transformers, with torchvision."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(model)
    assert "Pil" not in type(processor).__name__
    return processor


def _array(values: np.ndarray[Any, Any]) -> list[Any]:
    return [str(values.dtype), list(values.shape), msgspec.msgpack.Ext(RAW_VIEW, values.tobytes())]


@dataclass
class Talk:
    """A conversation that is carried one way."""

    desk: Desk
    carry: Callable[[Desk, bytes], Sent]
    tokens: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    images: list[Sent] = field(default_factory=list)

    def show(self, data: bytes, words: Sequence[int]) -> None:
        sent = self.carry(self.desk, data)
        self.tokens += [*words, self.desk.begin]
        self.offsets.append(len(self.tokens))
        self.tokens += [self.desk.family.placeholders.image] * sent.tokens + [self.desk.end]
        self.images.append(sent)

    def body(self, answer: int) -> bytes:
        bias = {str(token): -1e9 for token in self.desk.family.placeholders.unsampled}
        params = {"max_tokens": answer, "min_tokens": answer, "ignore_eos": True, "temperature": 0, "logprobs": 1}
        body: dict[str, Any] = {"token_ids": self.tokens, "sampling_params": {**params, "logit_bias": bias}}
        if isinstance(self.images[0].part, str):
            spans = zip(self.offsets, self.images, strict=True)
            body["features"] = {
                "mm_hashes": {"image": [one.name for one in self.images]},
                "mm_placeholders": {"image": [{"offset": at, "length": one.tokens} for at, one in spans]},
                "kwargs_data": {"image": [one.part for one in self.images]},
            }
        else:
            body["content_parts"] = [one.part for one in self.images]
        return msgspec.json.encode(body)


WAYS = {"references": by_reference, "content parts": by_address, "data URIs": as_data_uri, "tensors": as_tensors}
