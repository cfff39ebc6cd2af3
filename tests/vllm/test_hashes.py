"""A digest in a reference's place, in vLLM: what was verified lately, never what vLLM's caches hold under it."""

from __future__ import annotations

import base64
import hashlib
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.vllm.conversations import Body, Desk
from tests.vllm.serving import Server
from tests.vllm.test_agreement import assert_same

pytestmark = pytest.mark.vllm


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def by_digest(body: Body, *, whole: bool = False, digest: Any = digest_of) -> Body:
    """The same request with digests alone."""
    features = body["features"]
    texts = features["kwargs_data"]["image"]
    nothing = None if whole else {"image": [None] * len(texts)}
    hashes = {"image": [digest(text) for text in texts]}
    return body | {"features": features | {"mm_hashes": hashes, "kwargs_data": nothing}}


def test_what_was_seen_may_be_sent_by_digest(vllm: Server, desk: Desk) -> None:
    body = desk.request([desk.picture(400), desk.picture(401)])
    for whole in (False, True):
        unknown = vllm.generate(by_digest(body, whole=whole))
        assert (unknown.status, unknown.error["type"]) == (404, "reference_unknown")
        assert (unknown.error["param"], unknown.error["index"]) == ("features.mm_hashes.image", 0)
    first = vllm.generate(body)
    for whole in (False, True):
        assert_same(vllm.generate(by_digest(body, whole=whole)), first)
    mixed = by_digest(body)
    mixed["features"]["kwargs_data"]["image"][1] = body["features"]["kwargs_data"]["image"][1]
    mixed["features"]["mm_hashes"]["image"][1] = body["features"]["mm_hashes"]["image"][1]
    assert_same(vllm.generate(mixed), first)
    assert vllm.get("/inference/v1/capabilities").body["hashes"] is True


def test_a_digest_never_stands_for_what_somebody_else_put_under_it(vllm: Server, desk: Desk) -> None:
    """Content parts name their images themselves: such a name is not taken for a reference's digest."""
    picture = desk.picture(410)
    body = desk.request([picture])
    (text,) = body["features"]["kwargs_data"]["image"]
    told = io.BytesIO()
    Image.fromarray(np.zeros((picture.height, picture.width, 3), np.uint8)).save(told, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(told.getvalue()).decode()}"
    part = {"type": "image_url", "url": url, "uuid": digest_of(text)}
    parts = desk.with_parts(body, [picture]) | {"content_parts": [part]}
    assert vllm.generate(parts).status == 200
    assert vllm.generate(by_digest(body)).status == 404
    first = vllm.generate(body)
    assert vllm.generate(parts).status == 200
    assert_same(vllm.generate(by_digest(body)), first)


@pytest.mark.parametrize("guess", [lambda text: text[:64], lambda _: "0" * 64, lambda _: ""])
def test_what_is_no_digest_of_a_reference_is_not_found(vllm: Server, desk: Desk, guess: Any) -> None:
    body = desk.request([desk.picture(420)])
    assert vllm.generate(body).status == 200
    assert vllm.generate(by_digest(body, digest=guess)).status == 404
    picture = body["features"]["mm_hashes"]["image"][0]
    assert vllm.generate(by_digest(body, digest=lambda _: picture)).status == 404
