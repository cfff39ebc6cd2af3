"""Somebody sends a reference that was made for another model, or for other settings of this one.

Its layout may have the same number of tokens, and its pixels the same shape: nothing would fail, the model
would see something else than the trainer. So family, modality, layout fingerprint and pixel recipe are
compared with those of the model that is served.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from body import REFERENCES, retold
from target import Target, main
from verdict import Outcome, Refused

OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "another family": ({"family": "kimi_k25", "vllm_modality": "vision_chunk"}, "unknown_family"),
    "its layout, too": (
        {
            "family": "kimi_k25",
            "fingerprint": "63a3419b34b4463f1ea8d7ece5232ad1",
            "payload": {"grid_thws": [[1, 6, 4]]},
        },
        "unknown_family",
    ),
    "a family that nobody knows": ({"family": "x" * 64}, "unknown_family"),
    "a name that is none": ({"family": "../qwen_vl"}, "reference_format"),
    "no family": ({"family": None}, "reference_format"),
    "another fingerprint": ({"fingerprint": "0" * 32}, "fingerprint"),
    "a cut fingerprint": ({"fingerprint": "0" * 16}, "fingerprint"),
    "a fingerprint that is none": ({"fingerprint": "g" * 32}, "reference_format"),
    "another recipe": ({"own": {"recipe": "0" * 32}}, "fingerprint"),
    "no recipe": ({"own": {"recipe": None}}, "reference_format"),
    "another modality for vLLM": ({"vllm_modality": "vision_chunk"}, "fingerprint"),
    "a newer version": ({"own": {"v": 2}}, "reference_format"),
    "an older one": ({"own": {"v": 0}}, "reference_format"),
    "a key that is none": ({"pixel_values": [[0.5]]}, "reference_format"),
    "tensors inside": ({"payload": {"pixel_values": [[1, 1, 1]]}}, "tensors"),
}


def attack(target: Target) -> Iterator[Outcome]:
    for name, (changes, code) in OTHER.items():
        yield target.send(name, retold(target.good(), **changes), Refused(code, REFERENCES, 1))
    yield target.send("another modality", retold(target.good(), modality="video"), Refused("request", REFERENCES, 1))


if __name__ == "__main__":
    main(attack)
