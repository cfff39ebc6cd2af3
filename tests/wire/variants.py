"""One image as filmroll and as other systems write it, in every form that is read."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import msgspec

from filmroll.image import ImageRef
from filmroll.wire.descriptor import ImageDescriptor

DIGEST = "ab" * 32
DESCRIPTOR = ImageDescriptor(
    image=ImageRef(
        uri=f"file:///run/assets/images/ab/{DIGEST}.png",
        sha256=DIGEST,
        media_type="image/png",
        width=256,
        height=256,
        nbytes=1234,
    ),
    family="qwen_vl",
    layout_fingerprint="c5ece06d40951692b7035ec4dd381742",
    recipe="0123456789abcdef0123456789abcdef",
    payload={"image_grid_thw": [[1, 16, 16]]},
    tokens=64,
)
KIMI = msgspec.structs.replace(
    DESCRIPTOR, family="kimi_k25", payload={"grid_thws": [[1, 36, 46]]}, vllm_modality="vision_chunk"
)
PIXELS = b"not looked at by what only reads references"
INLINE = msgspec.structs.replace(
    DESCRIPTOR,
    image=ImageRef(
        uri="data:image/png;base64," + base64.b64encode(PIXELS).decode(),
        sha256=hashlib.sha256(PIXELS).hexdigest(),
        media_type="image/png",
        width=256,
        height=256,
        nbytes=len(PIXELS),
    ),
)
"""The same, inside its reference."""


def wrapped(text: str) -> str:
    """Unpadded urlsafe base64 after the prefix."""
    return "mmraw:" + encoded(text)


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode().rstrip("=")


def references(image: ImageRef | None = None, **changes: Any) -> dict[str, str]:
    """Other systems' references to an image that lies as `<first 16 digits>.png`; `changes` go into all of them."""
    image = image or DESCRIPTOR.image
    name = f"{image.sha256[:16]}.png"
    said = {
        "family": "qwen_vl",
        "fingerprint": DESCRIPTOR.layout_fingerprint,
        "mm_hash": image.sha256[:32],
        "modality": "image",
        "payload": DESCRIPTOR.payload,
    } | changes
    place = {"raw_image_uri": f"{image.uri.rpartition('/')[0].rpartition('/')[0]}/{name}"}
    inside = {"raw_image_data": INLINE.image.uri}
    fields = ":".join(str(said[key]) for key in ("family", "fingerprint", "modality", "mm_hash"))
    return {
        "A": wrapped(_json(said | place)),
        "B": "mmraw:" + _json(said | place),
        "B with its image": "mmraw:" + _json(said | inside | {"mm_hash": INLINE.image.sha256[:32]}),
        "C": "mmraw:v2:" + encoded(_json(said | {"raw_image_id": name, "run_id": "run"})),
        "C between colons": f"mmraw:v2:run:{fields}:{name}:{encoded(_json(said['payload']))}",
        "D": "mmraw:v3:" + encoded(_json(said | {"raw_image_id": name})),
        "D with its image": "mmraw:v3:"
        + encoded(_json(said | {"raw_uri": INLINE.image.uri, "mm_hash": INLINE.image.sha256[:32], "run_id": "run"})),
    }


def descriptors(image: ImageRef | None = None, **changes: Any) -> dict[str, dict[str, Any]]:
    """Other systems' descriptors of the same image."""
    image = image or DESCRIPTOR.image
    name = f"{image.sha256[:16]}.png"
    uri = f"{image.uri.rpartition('/')[0].rpartition('/')[0]}/{name}"
    newest = {"kind": "prime_raw_mm_item", "family": "qwen_vl", "payload": DESCRIPTOR.payload} | changes
    before = newest | {"modality": "image", "layout_fingerprint": DESCRIPTOR.layout_fingerprint}
    first = before | {"version": 1, "_prime_rl_image_ref": "raw_image"}
    return {
        "newest": newest | {"raw_image_uri": uri},
        "newest with its image": newest | {"raw_image_data": INLINE.image.uri},
        "as in the contract": before | {"raw_image_uri": uri},
        "by name": first | {"raw_image_id": name},
        "by uri": first | {"raw_uri": uri},
        "by reference": {key: value for key, value in first.items() if key[0] != "_"}
        | {"raw_ref": references(image, **changes)["D"]},
        "Kimi's": before
        | {"family": "kimi_k25", "payload": {"grid_thws": [1, 36, 46]}, "vllm_modality": "vision_chunk"}
        | {"raw_image_uri": uri},
    }


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
