"""Three ways to show pictures to vLLM: references, urls of stored images, data: URIs. They say the same."""

from __future__ import annotations

import numpy as np
import pytest

from filmroll.image import ImageRef
from filmroll.render import Rendered, load_renderer
from filmroll.wire.reference import write_reference
from tests.vllm.conversations import Body, Desk
from tests.vllm.serving import Answer, Server
from tests.vllm.test_agreement import TOLERANCE, assert_same

pytestmark = pytest.mark.vllm

Served = tuple[Server, Desk]
WHOLE = {"return_token_ids": True}


def given(answer: Answer) -> list[float]:
    """The logprob of every token that the prompt gives, after the first."""
    tokens, logprobs = answer.body["prompt_token_ids"], answer.body["prompt_logprobs"]
    return [those[str(token)]["logprob"] for token, those in zip(tokens[1:], logprobs[1:], strict=True)]


@pytest.mark.parametrize("count", [1, 3])
def test_every_way_says_the_same_of_tokens_that_are_sampled_or_given(served: Served, count: int) -> None:
    server, desk = served
    pictures = [desk.picture(300 + seed) for seed in range(count)]
    body = desk.request(pictures, seed=count, prompt_logprobs=0)
    answers = {way: server.generate(said | WHOLE) for way, said in desk.ways(body, pictures).items()}
    by_reference = answers["references"]
    for answer in answers.values():
        assert_same(answer, by_reference)
        for field in ("prompt_token_ids", "mm_placeholders"):
            assert answer.body[field] == by_reference.body[field]
        np.testing.assert_allclose(given(answer), given(by_reference), atol=TOLERANCE, rtol=0)
    assert by_reference.body["prompt_token_ids"] == body["token_ids"]
    assert by_reference.body["mm_placeholders"] == body["features"]["mm_placeholders"]
    for way in ("references", "stored"):
        assert answers[way].body["receipt"] == dict.fromkeys(("referenced", "verified", "decoded", "consumed"), count)


def test_pictures_matter(served: Served) -> None:
    """Or all of the above would hold for a model that is blind; the two are of one size."""
    server, desk = served
    one, other = desk.picture(310), desk.picture(315)
    for way in ("references", "stored"):
        seen, otherwise = (
            server.generate(desk.ways(desk.request([picture], seed=3), [picture])[way]) for picture in (one, other)
        )
        assert np.abs(np.subtract(seen.logprobs[0], otherwise.logprobs[0])) > 10 * TOLERANCE


def said(desk: Desk, prompt: Rendered) -> tuple[Body, list[ImageRef]]:
    """A rendered prompt as a request, its images described for vLLM's own image processor."""
    pictures = [image.image for image in prompt.images]
    descriptors = [desk.family.describe(picture) for picture in pictures]
    expanded = prompt.expanded()
    spans = [
        {"offset": offset, "length": image.tokens} for offset, image in zip(expanded.offsets, descriptors, strict=True)
    ]
    features = {
        "mm_hashes": {"image": [picture.sha256 for picture in pictures]},
        "mm_placeholders": {"image": spans},
        "kwargs_data": {"image": [write_reference(descriptor) for descriptor in descriptors]},
    }
    return desk.request([]) | {"token_ids": expanded.token_ids.tolist(), "features": features}, pictures


def test_every_turn_of_a_conversation_is_said_alike(served: Served) -> None:
    """Each turn extends the one before, by what was sampled or would have been."""
    server, desk = served
    renderer = load_renderer(desk.model, desk.store)
    turns = [
        [{"type": "image", "image": desk.store.read(desk.picture(320))}, {"type": "text", "text": "Which one?"}],
        [{"type": "text", "text": "And this?"}, {"type": "image", "image": desk.store.read(desk.picture(321))}],
        [{"type": "image", "image": desk.store.read(desk.picture(320))}, {"type": "text", "text": "Again?"}],
    ]
    prompt = renderer.render([{"role": "user", "content": turns[0]}])
    before: list[int] = []
    for turn in range(len(turns)):
        body, pictures = said(desk, prompt)
        assert body["token_ids"][: len(before)] == before
        before = body["token_ids"]
        ways = desk.ways(body, pictures)
        answers = [server.generate(ways[way]) for way in ("references", "stored", "data")]
        for answer in answers:
            assert_same(answer, answers[0])
        if turn + 1 < len(turns):
            completion = [token for token in answers[0].tokens if token not in renderer.stop_token_ids]
            completion = [token for token in completion if token < 128][:4] + renderer.stop_token_ids[:1]
            prompt = renderer.bridge(prompt, completion, [{"role": "user", "content": turns[turn + 1]}])
    assert len(prompt.images) == len(turns)


def test_all_at_once_each_says_what_it_says_alone(served: Served) -> None:
    """The same new pictures in every way at the same time, in conversations of different lengths."""
    server, desk = served
    bodies = []
    for number in range(6):
        pictures = [desk.picture(330 + one) for one in range(1 + number % 3)]
        bodies.append(desk.ways(desk.request(pictures, seed=number), pictures))
    together = server.together([said for ways in bodies for said in ways.values()])
    alone = [server.generate(ways["references"]) for ways in bodies for _ in ways]
    for answer, one in zip(together, alone, strict=True):
        assert_same(answer, one)
