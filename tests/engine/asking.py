"""Asking a served engine over HTTP, for the tests of what speaks to it in other ways than filmroll's own client."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from typing import Any

import httpx
import msgspec
import numpy as np
from PIL import Image

from filmroll.image import ImageRef
from filmroll.render import Rendered, Renderer
from filmroll.rollout.client import generate_request
from filmroll.store import open_store
from filmroll.wire.generate import SamplingParams
from tests.conftest import Served

GENERATE = "/inference/v1/generate"
ROUTES = re.compile(
    r"(?<![^\s'\"(])/(inference/v1/(generate|update_weights|weight_info|capabilities)"
    r"|v1/(models|chat/completions)|health|metrics)(?![^\s,.'\")])"
)
"""Places of the server's interface, which everybody may know; nothing that only begins or ends like one."""
PRIVATE = re.compile(r"(^|[\s'\"(])(file:)?/\w+/|Traceback|0x[0-9a-f]{6}")


def picture(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def stored(served: Served, seed: int, **size: int) -> ImageRef:
    """The same picture, put into the engine's store by somebody beside the engine."""
    return open_store(served.store).put(picture(seed, **size))


def data_uri(image: Image.Image | bytes, media_type: str = "image/png") -> str:
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        image.save(file, "PNG")
        image = file.getvalue()
    return f"data:{media_type};base64,{base64.b64encode(image).decode()}"


def by_reference(prompt: Rendered, **sampling: Any) -> dict[str, Any]:
    """The request that filmroll's own client makes of a prompt."""
    made: dict[str, Any] = msgspec.to_builtins(generate_request(prompt, SamplingParams(**sampling)))
    return made | {"return_token_ids": True}


def by_parts(prompt: Rendered, urls: Sequence[str], **sampling: Any) -> dict[str, Any]:
    """The same request as a client makes it that knows nothing of references."""
    parts = [{"type": "image_url", "url": url} for url in urls]
    return {
        "token_ids": prompt.logical,
        "content_parts": parts,
        "sampling_params": sampling,
        "return_token_ids": True,
    }


def generated(client: httpx.Client, request: dict[str, Any]) -> dict[str, Any]:
    response = client.post(GENERATE, json=request)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def refused(response: httpx.Response) -> dict[str, Any]:
    """The structured error of a 4xx; it says nothing of the server's machine."""
    assert 400 <= response.status_code < 500, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "code", "param", "index"}
    assert error["code"] == response.status_code
    assert not tells_private(error["message"]), error["message"]
    return error


def tells_private(message: str) -> bool:
    """Whether it holds a path of the server's machine, an address or a traceback."""
    return PRIVATE.search(ROUTES.sub("", message)) is not None


def asks(renderer: Renderer, *images: Any, text: str = "what do you see?") -> Rendered:
    parts = [{"type": "image", "image": image} for image in images]
    return renderer.render([{"role": "user", "content": [*parts, {"type": "text", "text": text}]}])


def said(answer: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Tokens and logprobs of an answer, its logprobs found in both forms."""
    (choice,) = answer["choices"]
    content = choice["logprobs"]["content"]
    assert [entry["token_id"] for entry in content] == choice["token_ids"]
    assert [entry["token"] for entry in content] == [f"token_id:{token}" for token in choice["token_ids"]]
    return choice["token_ids"], [entry["logprob"] for entry in content]


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two answers to one conversation: the same tokens, prompt and places, logprobs equal but for the batches' sums."""
    assert said(one)[0] == said(other)[0]
    np.testing.assert_allclose(said(one)[1], said(other)[1], atol=1e-5)
    for name in ("prompt_token_ids", "mm_placeholders"):
        assert one[name] == other[name], name
    assert json.dumps(one["receipt"]) == json.dumps(other["receipt"])
