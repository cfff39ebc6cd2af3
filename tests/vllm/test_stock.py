"""The client and a vLLM that nothing of filmroll is loaded into: plain urls of stored files, as any vLLM reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import httpx
import msgspec
import numpy as np
import pytest

from filmroll.errors import EngineAnswerError, EngineRefusedError
from filmroll.render import Renderer, load_renderer
from filmroll.rollout import Completion, EngineClient
from filmroll.wire.capabilities import ROUTE
from filmroll.wire.generate import SamplingParams
from filmroll.wire.receipt import Receipt
from tests.rollout.stands import prompt_of
from tests.vllm.conversations import Desk
from tests.vllm.serving import Server, serving
from tests.vllm.test_agreement import TOLERANCE
from tests.vllm.test_client import SIZES, ask, turns

pytestmark = pytest.mark.vllm

ALONE = {"VLLM_PLUGINS": ""}
"""No plugin is loaded: not the one for references, and no media connector with it."""


@pytest.fixture(scope="module")
def stock(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It may read files below the store's folder, and is told nothing else."""
    log = tmp_path_factory.mktemp("stock") / "vllm.log"
    with serving(desk.model, desk.store_dir, log, None, environment=ALONE) as server:
        yield server


@pytest.fixture
def renderer(desk: Desk) -> Renderer:
    return load_renderer(desk.model, desk.store)


def test_nothing_of_filmroll_is_there(stock: Server) -> None:
    """Or the rest would be about something else."""
    assert httpx.get(stock.url + ROUTE).status_code == 404
    assert "filmroll_" not in httpx.get(f"{stock.url}/metrics").text


def test_it_says_over_turns_what_references_say(vllm: Server, stock: Server, renderer: Renderer) -> None:
    by_references = ask(vllm, *turns(renderer), way="references")
    # Which way it takes is found out.
    by_files = ask(stock, *turns(renderer))
    for one, other, images in zip(by_references, by_files, (2, 3), strict=True):
        assert one.token_ids == other.token_ids
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=TOLERANCE, rtol=0)
        # It places every image, and nobody says that any was verified.
        assert other.receipt == Receipt(referenced=images, consumed=images)


def test_prompts_without_images_are_asked_too(vllm: Server, stock: Server, renderer: Renderer) -> None:
    (one,), (other,) = ask(vllm, prompt_of(renderer)), ask(stock, prompt_of(renderer))
    assert (one.token_ids, one.receipt) == (other.token_ids, other.receipt)


def test_many_conversations_at_once_are_each_answered_for_themselves(stock: Server, renderer: Renderer) -> None:
    prompts = [prompt_of(renderer, *SIZES, (32 * (1 + number), 64)) for number in range(6)]
    alone = ask(stock, *prompts)

    async def together() -> list[Completion]:
        async with EngineClient(stock.url, "tiny") as client:
            params = SamplingParams(max_tokens=6, temperature=0)
            asked = [client.generate(one, params, request_id=str(number)) for number, one in enumerate(prompts)]
            return await asyncio.gather(*asked)

    assert [one.token_ids for one in asyncio.run(together())] == [one.token_ids for one in alone]


def test_vision_tokens_are_not_sampled(stock: Server, renderer: Renderer) -> None:
    prompt = prompt_of(renderer, *SIZES)
    wanted = dict.fromkeys(prompt.family.placeholders.unsampled, 100.0)

    async def hot() -> list[int]:
        async with EngineClient(stock.url, "tiny") as client:
            # vLLM goes no higher.
            params = SamplingParams(max_tokens=200, temperature=2, logit_bias=wanted)
            return (await client.generate(prompt, params, request_id="hot")).token_ids

    sampled = asyncio.run(hot())
    assert len(set(sampled)) > 50
    assert not set(sampled) & set(wanted)


def test_another_expansion_than_its_own_is_found_out(stock: Server, renderer: Renderer) -> None:
    prompt = prompt_of(renderer, *SIZES)
    one, other = prompt.images
    believed = [msgspec.structs.replace(one, tokens=one.tokens + 1), other]
    with pytest.raises(EngineAnswerError, match="other tokens of the prompt") as refused:
        ask(stock, replace(prompt, images=believed))
    assert (refused.value.field, refused.value.index) == ("prompt_token_ids", 0)


def test_a_file_outside_the_allowed_folder_is_its_refusal(stock: Server, desk: Desk, renderer: Renderer) -> None:
    prompt = prompt_of(renderer, SIZES[0])
    (image,) = prompt.images
    outside = msgspec.structs.replace(image.image, uri=desk.copied(image.image))
    with pytest.raises(EngineRefusedError, match="request mine"):
        ask(stock, replace(prompt, images=[msgspec.structs.replace(image, image=outside)]))
