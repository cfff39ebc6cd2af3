"""One conversation, four ways to say it: references, tensors, content parts, and another engine."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch

from filmroll.engine.embedded.engine import EmbeddedEngine
from filmroll.materialize import Materializer
from filmroll.materialize.feed import load_model, suppress
from filmroll.pixels.decode import decode
from filmroll.render import load_renderer
from filmroll.rollout.client import EngineClient
from filmroll.wire.generate import SamplingParams, request_from
from filmroll.wire.reference import write_reference
from tests.plain import plain_inputs
from tests.vllm.conversations import Desk
from tests.vllm.serving import Answer, Server

pytestmark = pytest.mark.vllm
TOLERANCE = 1e-4
"""Of a logprob, in float32, between two ways to say the same and between two engines."""


def assert_same(one: Answer, other: Answer) -> None:
    assert one.tokens == other.tokens
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_references_say_what_content_parts_say(vllm: Server, desk: Desk, count: int) -> None:
    pictures = [desk.picture(seed) for seed in range(count)]
    body = desk.request(pictures, seed=count)
    answer = vllm.generate(body | {"return_token_ids": True})
    parts = vllm.generate(desk.with_parts(body, pictures) | {"return_token_ids": True})
    assert_same(answer, parts)
    for field in ("prompt_token_ids", "mm_placeholders"):
        assert answer.body[field] == parts.body[field]
    assert answer.body["receipt"] == dict.fromkeys(("referenced", "verified", "decoded", "consumed"), count)


def test_references_say_what_tensors_say_over_many_turns(vllm: Server, desk: Desk) -> None:
    turns = [[desk.picture(11), "Which one?"], ["red"], [desk.picture(12), desk.picture(13), "And now?"], ["blue"]]
    turns += [["And the first again?", desk.picture(11)]]
    pictures = [part for turn in turns for part in turn if not isinstance(part, str)]
    for said in (1, 3, 5):
        rendered = vllm.post("/v1/chat/completions/render", {"model": "tiny", "messages": desk.messages(turns[:said])})
        assert rendered.status == 200, rendered.body
        body = desk.request([]) | {"token_ids": rendered.body["token_ids"]}
        features = rendered.body["features"]
        shown = pictures[: len(features["mm_hashes"]["image"])]
        references = features | {
            "mm_hashes": {"image": [picture.sha256 for picture in shown]},
            "kwargs_data": {"image": [write_reference(desk.family.describe(picture)) for picture in shown]},
            "mm_metadata": None,
        }
        assert_same(vllm.generate(body | {"features": references}), vllm.generate(desk.with_tensors(body, features)))


@pytest.mark.parametrize("bias", [{}, {str(token): (-1) ** token * token / 40 for token in range(0, 250, 3)}])
def test_both_engines_say_the_same(vllm: Server, desk: Desk, bias: dict[str, float]) -> None:
    bodies = [
        desk.request(
            [desk.picture(20 + 3 * number + one) for one in range(number)],
            seed=number,
            family=desk.pillow,
            logit_bias=bias,
        )
        for number in range(4)
    ]
    # Without images, vLLM is left to itself.
    bodies[0] = desk.plain(bodies[0])
    theirs = vllm.together(bodies)
    materializer = Materializer(desk.store, desk.pillow)
    with EmbeddedEngine(desk.model, desk.pillow, materializer, weights_dir=None, name="tiny", threads=1) as engine:

        async def together() -> list[object]:
            params = {"max_tokens": 6, "temperature": 0, "logit_bias": {int(key): one for key, one in bias.items()}}
            plain = [body | {"sampling_params": params} for body in bodies]
            return await asyncio.gather(*(engine.generate(request_from(body)) for body in plain))

        ours = asyncio.run(together())
    for answer, own in zip(theirs, ours, strict=True):
        (choice,) = own.choices
        assert answer.tokens == choice.token_ids
        np.testing.assert_allclose(
            answer.logprobs, [one.logprob for one in choice.logprobs.content], atol=TOLERANCE, rtol=0
        )


def test_the_models_own_forward_says_the_same(tiled_vllm: Server, tiled_desk: Desk) -> None:
    """Of a family that the embedded engine does not run, on the pixels that the trainer makes."""
    family = tiled_desk.pillow
    model = load_model(tiled_desk.model)
    for count in (1, 2):
        pictures = [tiled_desk.picture(40 + 3 * count + one) for one in range(count)]
        body = tiled_desk.request(pictures, seed=count, family=family)
        answer = tiled_vllm.generate(body)
        decoded = [decode(tiled_desk.store.read(picture), max_pixels=1 << 20) for picture in pictures]
        row = [*body["token_ids"], *answer.tokens]
        with torch.inference_mode():
            logits = model(**plain_inputs(family, [row], family.pixels(decoded))).logits[
                0, len(body["token_ids"]) - 1 :
            ]
        logprobs = suppress(logits[:-1], family).log_softmax(-1)
        given = logprobs[range(len(answer.tokens)), answer.tokens]
        np.testing.assert_allclose(answer.logprobs, given, atol=TOLERANCE, rtol=0)


def test_the_client_of_rollouts_needs_no_change(vllm: Server, desk: Desk) -> None:
    renderer = load_renderer(desk.model, desk.store)
    content = [{"type": "image", "image": np.zeros((40, 70, 3), np.uint8)}, {"type": "text", "text": "Which colour?"}]
    prompt = renderer.render([{"role": "user", "content": content}])

    async def ask() -> object:
        client = EngineClient(vllm.url, "tiny")
        try:
            return await client.generate(prompt, SamplingParams(max_tokens=5, temperature=1.0), request_id="one")
        finally:
            await client.close()

    completion = asyncio.run(ask())
    assert len(completion.token_ids) == len(completion.logprobs) <= 5
    assert completion.receipt.consumed == 1


def test_swapped_pictures_say_something_else(vllm: Server, desk: Desk) -> None:
    """The same size, so that only the pixels differ."""
    one, other = desk.picture(30), desk.picture(35)
    ahead, behind = (vllm.generate(desk.request(pair, seed=3)) for pair in ((one, other), (other, one)))
    assert np.abs(np.subtract(ahead.logprobs[0], behind.logprobs[0])) > 10 * TOLERANCE


def test_vision_tokens_are_never_sampled(vllm: Server, desk: Desk) -> None:
    wanted = {str(token): 100.0 for token in desk.family.placeholders.unsampled}
    answer = vllm.generate(desk.request([desk.picture(1)], max_tokens=40, temperature=1, logit_bias=wanted))
    assert not set(answer.tokens) & set(desk.family.placeholders.unsampled)
