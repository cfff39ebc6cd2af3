"""The client and a running vLLM: both ways, and the comparison with vLLM's own expansion."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from filmroll.errors import EngineAnswerError, EngineRefusedError
from filmroll.render import Rendered, Renderer, load_renderer
from filmroll.rollout import Completion, EngineClient
from filmroll.wire.capabilities import Way
from filmroll.wire.generate import SamplingParams
from filmroll.wire.receipt import Receipt
from tests.rollout.stands import prompt_of
from tests.vllm.conversations import Desk
from tests.vllm.serving import Server
from tests.vllm.test_agreement import TOLERANCE

pytestmark = pytest.mark.vllm

LIKELIEST = SamplingParams(max_tokens=6, temperature=0)
# Multiples of 32: no resizing, so that it does not matter whose filter it would be.
SIZES = ((64, 32), (96, 64))


@pytest.fixture
def renderer(desk: Desk) -> Renderer:
    return load_renderer(desk.model, desk.store)


def ask(vllm: Server, *prompts: Rendered, way: Way | None = None, **options: Any) -> list[Completion]:
    """One completion after another."""

    async def one_after_another() -> list[Completion]:
        async with EngineClient(vllm.url, "tiny", way=way) as client:
            return [await client.generate(one, LIKELIEST, request_id="mine", **options) for one in prompts]

    return asyncio.run(one_after_another())


def turns(renderer: Renderer) -> tuple[Rendered, Rendered]:
    """A prompt of two images, and the one that follows with another."""
    first = prompt_of(renderer, *SIZES)
    shown = [{"type": "image", "image": np.full((64, 64, 3), 9, np.uint8)}, {"type": "text", "text": "and now?"}]
    return first, renderer.bridge(first, [65, renderer.stop_token_ids[0]], [{"role": "user", "content": shown}])


def test_urls_say_what_references_say_over_turns(vllm: Server, renderer: Renderer) -> None:
    by_references = ask(vllm, *turns(renderer))
    by_urls = ask(vllm, *turns(renderer), way="content_parts")
    for one, other, images in zip(by_references, by_urls, (2, 3), strict=True):
        assert one.token_ids == other.token_ids
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=TOLERANCE, rtol=0)
        # The plugin reads what it serves by URL itself, and says so.
        assert one.receipt == other.receipt == Receipt(images, images, images, images)


def test_a_prompt_without_images_is_asked_both_ways(vllm: Server, renderer: Renderer) -> None:
    plain = prompt_of(renderer)
    (one,), (other,) = ask(vllm, plain), ask(vllm, plain, way="content_parts")
    assert (one.token_ids, one.receipt) == (other.token_ids, other.receipt)


def test_another_expansion_than_vllms_is_found_out(vllm: Server, renderer: Renderer) -> None:
    """As of a renderer with other image bounds: it believes that the second image takes one token more."""
    prompt = prompt_of(renderer, *SIZES)
    one, other = prompt.images
    believed = [one, msgspec.structs.replace(other, tokens=other.tokens + 1)]
    with pytest.raises(EngineAnswerError, match="other tokens of the prompt") as refused:
        ask(vllm, replace(prompt, images=believed), way="content_parts")
    assert (refused.value.field, refused.value.index) == ("prompt_token_ids", 1)
    theirs = prompt.expanded().token_ids
    place = prompt.expanded().offsets[1] + prompt.images[1].tokens
    assert f"they differ at token {place}, " in str(refused.value)
    assert f"({len(theirs)} in all)" in str(refused.value)
    assert f"({len(theirs) + 1} in all)" in str(refused.value)


def test_an_image_that_vllm_cannot_have_is_its_refusal(vllm: Server, desk: Desk, renderer: Renderer) -> None:
    prompt = prompt_of(renderer, (128, 96))
    (image,) = prompt.images
    elsewhere = msgspec.structs.replace(image.image, uri=image.image.uri.replace(desk.store_dir.name, "elsewhere"))
    with pytest.raises(EngineRefusedError, match="request mine"):
        ask(vllm, replace(prompt, images=[msgspec.structs.replace(image, image=elsewhere)]), way="content_parts")


def test_salted_prompts_are_answered_alike(vllm: Server, renderer: Renderer) -> None:
    prompt = prompt_of(renderer, *SIZES)
    (plain,) = ask(vllm, prompt)
    for way in ("references", "content_parts"):
        (salted,) = ask(vllm, prompt, way=way, cache_salt="salt", session="one")
        assert salted.token_ids == plain.token_ids
