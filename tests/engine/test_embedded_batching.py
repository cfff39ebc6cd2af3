"""Rows decode together exactly as they would alone."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
import torch

from filmroll.engine.embedded import batch
from filmroll.engine.embedded.engine import EmbeddedEngine
from filmroll.errors import EngineError, ReceiptError, RequestError
from filmroll.wire.generate import GenerateAnswer, GenerateRequest
from tests.engine.conftest import open_engine

TOLERANCE = 1e-5


def tokens(answers: list[GenerateAnswer]) -> list[list[int]]:
    return [answer.choices[0].token_ids for answer in answers]


def mixed(desk: Any, count: int = 12, **params: Any) -> list[GenerateRequest]:
    """Prompts of all lengths with none to three images, and answers of all lengths."""
    return [
        desk.request(
            [desk.picture(10 * row + n) for n in range(row % 4)],
            words=3 + 5 * (row % 5),
            seed=row,
            max_tokens=1 + row % 7,
            **params,
        )
        for row in range(count)
    ]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_of_a_batch_equal_a_full_forward(desk: Any, ask: Any, oracle: Any, temperature: float) -> None:
    requests = mixed(desk, temperature=temperature)
    for request, answer in zip(requests, ask.all(requests), strict=True):
        assert len(answer.choices[0].token_ids) == request.sampling_params.max_tokens
        assert oracle.difference(request, answer) < TOLERANCE


def test_greedy_tokens_are_the_same_alone_and_in_a_batch(desk: Any, ask: Any) -> None:
    requests = mixed(desk, temperature=0)
    assert tokens(ask.all(requests)) == [ask.one(request).choices[0].token_ids for request in requests]


def test_rows_that_arrive_during_decoding_join_it(desk: Any, engine: EmbeddedEngine, oracle: Any) -> None:
    long = desk.request([desk.picture(1)], words=40, max_tokens=600)
    late = [desk.request([desk.picture(n)], words=60 if n == 2 else 4, seed=n, max_tokens=5) for n in range(4)]

    async def one_after_another() -> list[GenerateAnswer]:
        first = asyncio.create_task(engine.generate(long))
        answers = []
        for request in late:
            await asyncio.sleep(0.005)
            answers.append(await engine.generate(request))
        assert not first.done(), "the late ones waited for the long one"
        return [await first, *answers]

    for request, answer in zip([long, *late], asyncio.run(one_after_another()), strict=True):
        assert oracle.difference(request, answer) < TOLERANCE


def test_a_seed_gives_the_same_tokens_in_any_company(desk: Any, ask: Any) -> None:
    request = with_params(desk.request([desk.picture(3)], max_tokens=8, temperature=1.5), seed=99)
    alone = ask.one(request).choices[0].token_ids
    company = mixed(desk, 5)
    assert tokens(ask.all([request, *company]))[0] == alone
    assert tokens(ask.all([*company, request]))[-1] == alone
    assert ask.one(with_params(request, seed=100)).choices[0].token_ids != alone


def with_params(request: GenerateRequest, **params: Any) -> GenerateRequest:
    return msgspec.structs.replace(request, sampling_params=msgspec.structs.replace(request.sampling_params, **params))


def test_rows_without_a_seed_differ(desk: Any, ask: Any) -> None:
    request = desk.request(max_tokens=8)
    assert len({tuple(row) for row in tokens(ask.all([request] * 8))}) == 8


def test_vision_tokens_are_never_sampled(desk: Any, ask: Any, oracle: Any) -> None:
    forbidden = set(desk.family.placeholders.unsampled)
    requests = [desk.request(words=3, seed=n, max_tokens=60, temperature=100) for n in range(64)]
    sampled = [token for row in tokens(ask.all(requests)) for token in row]
    assert len(sampled) == 64 * 60
    assert forbidden.isdisjoint(sampled)
    # At this temperature nearly every other token is drawn, so the forbidden ones would be too.
    assert len(set(sampled)) > 0.9 * ask.engine.vocabulary


def test_top_k_of_one_is_greedy(desk: Any, ask: Any) -> None:
    greedy, first = (mixed(desk, 6, **params) for params in ({"temperature": 0}, {"top_k": 1}))
    assert tokens(ask.all(greedy)) == tokens(ask.all(first))


def test_a_stop_token_ends_the_row_and_is_part_of_it(desk: Any, ask: Any) -> None:
    request = desk.request([desk.picture(2)], max_tokens=20, temperature=0)
    full = ask.one(request).choices[0]
    assert (len(full.token_ids), full.finish_reason) == (20, "length")
    stop = full.token_ids[4]
    ended = ask.one(with_params(request, stop_token_ids=[stop])).choices[0]
    assert ended.token_ids == full.token_ids[: full.token_ids.index(stop) + 1]
    assert ended.finish_reason == "stop"


def test_the_pixels_matter(desk: Any, ask: Any) -> None:
    """An engine that loses its images answers the same to all of them."""
    requests = [desk.request([desk.picture(seed, (64, 64))], temperature=0, max_tokens=1) for seed in range(8)]
    logprobs = {answer.choices[0].logprobs.content[0].logprob for answer in ask.all(requests)}
    assert len(logprobs) == 8


def test_receipts_count_the_images_of_each_request(desk: Any, ask: Any) -> None:
    requests = mixed(desk, 8)
    for row, answer in enumerate(ask.all(requests)):
        receipt = answer.receipt
        assert receipt is not None
        assert {receipt.referenced, receipt.verified, receipt.decoded, receipt.consumed} == {row % 4}


def test_a_batch_whose_images_get_lost_fails(desk: Any, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model itself would go on without the pixels, and nothing would tell."""
    forward = batch._forward

    def blind(model: Any, *, pixel_values: Any = None, **inputs: Any) -> torch.Tensor:
        return forward(model, **inputs)

    with monkeypatch.context() as patch:
        patch.setattr(batch, "_forward", blind)
        with pytest.raises(ReceiptError, match="1 images were referred to, 1 verified, 1 decoded and 0 consumed"):
            ask.one(desk.request([desk.picture(1)]))
    ask.one(desk.request([desk.picture(1)]))


def test_a_prompt_that_breaks_the_model_fails_alone(desk: Any, engine: EmbeddedEngine, monkeypatch: Any) -> None:
    forward = batch._forward

    def fragile(model: Any, **inputs: Any) -> torch.Tensor:
        if inputs["input_ids"].shape[1] > 1 and (inputs["input_ids"] == 199).any():
            raise RuntimeError("/secret/kernel broke")
        return forward(model, **inputs)

    monkeypatch.setattr(batch, "_forward", fragile)
    good = [desk.request([desk.picture(n)], words=1, seed=n + 1, max_tokens=3, temperature=0) for n in range(5)]
    good = [request for request in good if 199 not in request.token_ids]
    bad = GenerateRequest([1, 199, 2], good[0].sampling_params)

    async def together() -> list[Any]:
        return await asyncio.gather(*map(engine.generate, [*good, bad, *good]), return_exceptions=True)

    answers = asyncio.run(together())
    failed = answers.pop(len(good))
    assert isinstance(failed, EngineError)
    assert "/secret" not in str(failed.wire())
    assert all(isinstance(answer, GenerateAnswer) for answer in answers)


@pytest.mark.parametrize("place", ["advance", "join", "sample"])
def test_a_batch_that_breaks_fails_and_the_engine_goes_on(
    desk: Any, engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def broken(*_: Any) -> None:
        raise MemoryError("no room")

    async def overlapping() -> list[Any]:
        begun = asyncio.Event()
        first = asyncio.create_task(engine.generate(desk.request(max_tokens=1000), heard=lambda *_: begun.set()))
        heard = asyncio.create_task(begun.wait())
        await asyncio.wait([first, heard], return_when=asyncio.FIRST_COMPLETED)
        heard.cancel()
        second = asyncio.create_task(engine.generate(desk.request(max_tokens=400)))
        return await asyncio.gather(first, second, return_exceptions=True)

    with monkeypatch.context() as patch:
        patch.setattr(batch.Batch, place, broken)
        assert all(isinstance(answer, EngineError) for answer in asyncio.run(overlapping()))
    asyncio.run(engine.generate(desk.request(max_tokens=2)))


def test_a_cancelled_request_leaves_the_batch(desk: Any, engine: EmbeddedEngine) -> None:
    sampled = 0

    async def leave() -> None:
        begun = asyncio.Event()

        def heard(*_: Any) -> None:
            nonlocal sampled
            sampled += 1
            begun.set()

        task = asyncio.create_task(engine.generate(desk.request(words=3, max_tokens=5000), heard=heard))
        await begun.wait()
        assert engine._loop._batch is not None
        task.cancel()
        while engine._loop._batch is not None:  # noqa: ASYNC110 the model's thread sets no event
            await asyncio.sleep(0.02)

    asyncio.run(leave())
    assert sampled < 4000, "the row went on after its client had left"


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_bias_shifts_the_logits_of_its_row(desk: Any, ask: Any, oracle: Any, temperature: float) -> None:
    vision = dict.fromkeys(desk.family.placeholders.unsampled, 100.0)
    plain = mixed(desk, 4, temperature=temperature)
    biased = mixed(desk, 4, temperature=temperature, logit_bias={7: 30.0, 8: -2.5} | vision)
    answers = ask.all([*plain, *biased])
    for request, answer in zip([*plain, *biased], answers, strict=True):
        assert oracle.difference(request, answer) < TOLERANCE
    assert {token for row in tokens(answers[4:]) for token in row} == {7}
    assert {token for row in tokens(answers[:4]) for token in row} != {7}


def test_a_bias_of_a_token_that_the_model_has_not_is_refused(desk: Any, ask: Any) -> None:
    unknown = ask.engine.vocabulary
    with pytest.raises(RequestError, match=f"token {unknown}") as refused:
        ask.one(desk.request(logit_bias={3: 1.0, unknown: 1.0}))
    assert refused.value.field == "sampling_params.logit_bias"
    ask.one(desk.request(logit_bias={unknown - 1: 1.0}))


def test_rows_that_wait_go_by_priority_and_then_as_they_came(desk: Any) -> None:
    """One at a time, behind one that takes long."""
    priorities = [0, 5, 0, -(2**63), 2**63 - 1, -1, 0]

    async def order(engine: EmbeddedEngine) -> list[int]:
        finished: list[int] = []

        async def run(number: int, priority: int) -> None:
            await engine.generate(msgspec.structs.replace(desk.request(max_tokens=2), priority=priority))
            finished.append(number)

        begun = asyncio.Event()
        first = asyncio.create_task(engine.generate(desk.request(max_tokens=400), heard=lambda *_: begun.set()))
        await begun.wait()
        tasks = []
        for number, priority in enumerate(priorities):
            task = asyncio.create_task(run(number, priority))
            while len(engine._loop._waiting) <= number:
                assert not first.done()
                await asyncio.sleep(0.001)
            tasks.append(task)
        await asyncio.gather(first, *tasks)
        return finished

    with open_engine(desk, max_batch=1) as engine:
        assert asyncio.run(order(engine)) == [3, 5, 0, 2, 6, 1, 4]


def test_salted_prompts_are_answered_alike(desk: Any, ask: Any) -> None:
    """Nothing is kept of a prompt that a salt would keep apart."""
    request = desk.request([desk.picture(2)], max_tokens=6, temperature=0)
    salted = [msgspec.structs.replace(request, cache_salt=salt) for salt in ("one", "other")]
    plain, *others = (ask.one(one).choices[0] for one in [request, *salted])
    assert others == [plain, plain]


def test_a_long_queue_goes_through_in_turn(desk: Any, ask: Any) -> None:
    requests = [desk.request([desk.picture(n % 7)], seed=n, max_tokens=2) for n in range(150)]
    assert all(len(row) == 2 for row in tokens(ask.all(requests)))
