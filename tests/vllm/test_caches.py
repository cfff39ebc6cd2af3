"""An image that vLLM has costs nothing more, and nobody can put another under its name."""

from __future__ import annotations

import base64
import io
import random

import numpy as np
import pytest
from PIL import Image

from tests.vllm.conversations import Desk
from tests.vllm.sabotage import PATH
from tests.vllm.serving import Server, streamed
from tests.vllm.test_agreement import assert_same

pytestmark = pytest.mark.vllm

HITS, QUERIES = "vllm:mm_cache_hits_total", "vllm:mm_cache_queries_total"


def test_the_same_image_is_neither_decoded_nor_sent_again(vllm: Server, desk: Desk) -> None:
    picture = desk.picture(101)
    body = desk.request([picture, desk.picture(102), picture], seed=1)
    first = vllm.generate(body)
    before = vllm.metric(HITS), vllm.metric(QUERIES)
    with desk.hidden(picture):
        # Nothing there to be decoded: the pixels are those that the engine has.
        assert_same(vllm.generate(body), first)
    assert (vllm.metric(HITS) - before[0], vllm.metric(QUERIES) - before[1]) == (3, 3)


def test_claims_about_a_kept_image_are_checked_all_the_same(vllm: Server, desk: Desk) -> None:
    body = desk.request([desk.picture(103)])
    assert vllm.generate(body).status == 200
    reference = body["features"]["kwargs_data"]["image"][0]
    body["features"]["kwargs_data"]["image"] = [reference.replace('"width":48', '"width":49')]
    refused = vllm.generate(body)
    assert (refused.status, refused.error["type"], refused.error["index"]) == (400, "grid", 0)


def test_an_engine_that_has_forgotten_is_sent_everything_again(vllm: Server, desk: Desk) -> None:
    body = desk.request([desk.picture(104), desk.picture(105)])
    first = vllm.generate(body)
    for number in (1, 2):
        assert vllm.post(PATH, {}).status == 200
        if number == 1:
            assert_same(vllm.generate(body), first)
        else:
            assert streamed(vllm.stream(body | {"stream": True})) == first.tokens
        assert vllm.log.read_text().count("returning a retryable response") == number


@pytest.mark.parametrize("refused", [{"sampling_params": {"logit_bias": {"99999999": 1}}}, {"model": "another"}])
def test_a_request_that_vllm_refuses_leaves_no_image_half_known(
    vllm: Server, desk: Desk, refused: dict[str, object]
) -> None:
    picture = desk.picture(106 + len(str(refused)))
    body = desk.request([picture])
    assert vllm.generate(body | refused).status in (400, 404)
    tokens = streamed(vllm.stream(body | {"stream": True}))
    again = vllm.generate(body)
    assert tokens == again.tokens
    assert_same(again, vllm.generate(desk.with_parts(body, [picture])))


def test_no_name_that_a_request_gives_stands_for_another_picture(vllm: Server, desk: Desk) -> None:
    """Content parts name their images themselves: with every name that could be guessed, another's answer stays."""
    picture, other = desk.picture(107), Image.fromarray(np.zeros((64, 64, 3), np.uint8))
    told = io.BytesIO()
    other.save(told, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(told.getvalue()).decode()}"
    names = [picture.sha256, picture.sha256[:32], f"{picture.sha256}:{desk.family.recipe}", picture.uri]
    body = desk.request([picture])
    for name in names:
        parts = desk.with_parts(body, [picture]) | {"content_parts": [{"type": "image_url", "url": url, "uuid": name}]}
        assert vllm.generate(parts).status == 200
    assert_same(vllm.generate(body), vllm.generate(desk.with_parts(body, [picture])))


def test_many_at_once_say_what_each_says_alone(vllm: Server, desk: Desk) -> None:
    shuffled = random.Random(0)
    bodies = [
        desk.request([desk.picture(120 + shuffled.randrange(8)) for _ in range(shuffled.randrange(1, 4))], seed=number)
        for number in range(32)
    ]
    for together, body in zip(vllm.together(bodies), bodies, strict=True):
        assert_same(together, vllm.generate(body))
