"""Somebody sends tensors, or what unpacks to something else, where references should be.

Numbers cannot be checked against an image: who may send them decides what the model sees under any name, and
one item without pixels has ended vLLM's engine for everybody. A pickle runs whatever its writer wanted. So
what is no reference is not unpacked. (vLLM alone takes tensors: with the plugin it refuses them when it is told
`"only_references": true`. Without that, this attack ends the engine of vLLM 0.32.)
"""

from __future__ import annotations

import base64
import os
import pickle
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from body import REFERENCES, Body, with_lists
from target import Target, main
from verdict import Answer, Harmless, Outcome, Refused


class Run:
    """Unpickled, it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def tensor(dtype: str, shape: list[int], data: bytes) -> dict[str, Any]:
    """As vLLM sends one."""
    return {"data": [dtype, shape, msgspec.msgpack.Ext(3, data)], "field": ["batched", {"keep_on_cpu": False}]}


def grid(*sides: int) -> dict[str, Any]:
    return tensor("int64", [len(sides)], struct.pack(f"<{len(sides)}q", *sides))


PIXELS = tensor("uint8", [24, 1536], bytes(24 * 1536))
ITEMS: dict[str, Any] = {
    "whole": {"image_grid_thw": grid(1, 6, 4), "pixel_values": PIXELS},
    "without pixels": {"image_grid_thw": grid(1, 6, 4)},
    "without a grid": {"pixel_values": PIXELS},
    "with a grid of zeros": {"image_grid_thw": grid(1, 0, 0), "pixel_values": PIXELS},
    "with a negative grid": {"image_grid_thw": grid(1, -6, 4), "pixel_values": PIXELS},
    "with a huge grid": {"image_grid_thw": grid(1, 2**40, 2**40), "pixel_values": PIXELS},
    "with a grid of two": {"image_grid_thw": grid(6, 4), "pixel_values": PIXELS},
    "of a shape that is not theirs": {"pixel_values": tensor("uint8", [2**40, 2**40], b"")},
    "of a type that is none": {"pixel_values": tensor("__import__", [1], b"\0")},
    "of nothing": {},
    "that are nested": {"a": [[[[[[]]]]]]},
}


def attack(target: Target) -> Iterator[Outcome]:
    for name, item in ITEMS.items():
        text = base64.b64encode(msgspec.msgpack.encode(item)).decode()
        yield target.send(f"tensors {name}", _instead(target, text), _right(target))
        yield target.send(f"tensors {name}, beside a reference", _beside(target, text), RIGHT)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace"
        packed = pickle.dumps(Run(trace))
        for name, text in {
            "a pickle": base64.b64encode(packed).decode(),
            "a pickle, urlsafe": base64.urlsafe_b64encode(packed).decode().rstrip("="),
            "a pickle as a reference": "mmraw:" + base64.urlsafe_b64encode(packed).decode().rstrip("="),
            "what is no base64": "%%%",
            "zlib": "eJwLAAAgACA=",
        }.items():
            yield target.send(name, _instead(target, text), FIRST if "as a reference" in name else _right(target))
        ran = "the pickle was run" if trace.exists() else ""
        yield Outcome("what the pickles wanted", str(trace), Answer(200, ""), ran)
    body = target.good()
    body["features"]["mm_metadata"] = {"image": [base64.b64encode(packed).decode()] * 2}
    yield target.send("beside references that are good", body, Harmless())


RIGHT, FIRST = (Refused("reference_format", REFERENCES, index) for index in (1, 0))


def _right(target: Target) -> Refused:
    if target.is_vllm:
        return Refused("request", "features.kwargs_data")
    return FIRST


def _instead(target: Target, text: str) -> Body:
    """Both images are this; the hashes are such as nobody knows."""
    return with_lists(
        target.good(), kwargs_data=lambda _: [text] * 2, mm_hashes=lambda _: ["forged one", "forged other"]
    )


def _beside(target: Target, text: str) -> Body:
    return with_lists(target.good(), kwargs_data=lambda texts: [texts[0], text])


if __name__ == "__main__":
    main(attack)
