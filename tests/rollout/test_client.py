"""One server: what is sent in each way, what is tried again and what is not, and which answers are believed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest

from filmroll.errors import (
    ConfigError,
    EngineAnswerError,
    EngineRefusedError,
    EngineUnavailableError,
    FilmrollError,
    FingerprintError,
    ReceiptError,
)
from filmroll.render import Rendered, Renderer
from filmroll.rollout import Completion, EngineClient
from filmroll.rollout.client import tries
from filmroll.rollout.client.requests import NEVER
from filmroll.wire.generate import SamplingParams
from filmroll.wire.receipt import Receipt
from filmroll.wire.reference import digest_of
from tests.rollout.stands import (
    Behaviour,
    Stand,
    bodies,
    capabilities,
    drop,
    expanding,
    half,
    never,
    prompt_of,
    refusing,
    saying,
    unstructured,
)

SAMPLING = SamplingParams(max_tokens=6)
FAR = {"timeout": 60.0, "patience": 30.0}
"""Limits that a slow machine does not reach."""


def ask(stand: Stand, prompt: Rendered, times: int = 1, *, client: dict[str, Any] | None = None, **options: Any) -> Any:
    """What the client makes of the stand's answers, one after another; the last one is returned."""

    async def one_after_another() -> Completion:
        async with stand, EngineClient(stand.url, "tiny", **(FAR | (client or {}))) as engine:
            for _ in range(times):
                done = await engine.generate(prompt, SAMPLING, **({"request_id": "r"} | options))
            return done

    return asyncio.run(one_after_another())


@pytest.fixture
def prompt(renderer: Renderer) -> Rendered:
    return prompt_of(renderer, (32, 32), (64, 32))


@pytest.fixture
def plain(renderer: Renderer) -> Rendered:
    return prompt_of(renderer)


@pytest.fixture
def plugin(renderer: Renderer) -> Stand:
    """Takes references."""
    return Stand(capabilities(renderer.family))


# The ways


def test_an_engine_that_takes_references_is_sent_references(plugin: Stand, prompt: Rendered) -> None:
    done = ask(plugin, prompt)
    (sent,) = plugin.generated
    assert sent.body["token_ids"] == prompt.expanded().token_ids.tolist()
    assert [text[:6] for text in sent.body["features"]["kwargs_data"]["image"]] == ["mmraw:"] * 2
    assert "content_parts" not in sent.body
    assert done.receipt == Receipt(2, 2, 2, 2)
    assert done.request_bytes == len(sent.raw)


def test_an_engine_that_does_not_say_what_it_is_is_sent_urls(prompt: Rendered) -> None:
    stock = Stand(script=[expanding(prompt)])
    done = ask(stock, prompt)
    (sent,) = stock.generated
    assert sent.body["token_ids"] == prompt.logical
    assert sent.body["content_parts"] == [
        {"type": "image_url", "url": one.image.uri, "uuid": f"{one.image.sha256}-{one.recipe}"} for one in prompt.images
    ]
    assert sent.body["return_token_ids"] is True
    assert "features" not in sent.body
    # It says where the images are, and of their bytes nothing.
    assert done.receipt == Receipt(referenced=2, verified=0, decoded=0, consumed=2)


def test_the_way_can_be_chosen(plugin: Stand, prompt: Rendered) -> None:
    plugin.script = [expanding(prompt)]
    ask(plugin, prompt, client={"way": "content_parts"})
    stock = Stand()
    ask(stock, prompt, client={"way": "references"})
    assert "content_parts" in plugin.generated[0].body
    assert "features" in stock.generated[0].body


def test_a_way_that_the_engine_does_not_take_is_said_at_once(renderer: Renderer, prompt: Rendered) -> None:
    stand = Stand(capabilities(renderer.family, ways=["references"]))
    with pytest.raises(ConfigError, match="sent as content_parts, the engine takes references"):
        ask(stand, prompt, client={"way": "content_parts"})
    assert stand.generated == []


@pytest.mark.parametrize("what", ["family", "fingerprint", "recipe"])
def test_a_prompt_for_another_model_is_not_sent(renderer: Renderer, prompt: Rendered, what: str) -> None:
    other = {"family": "kimi_k25", "fingerprint": "0" * 32, "recipe": ["0" * 32, "1" * 32]}[what]
    stand = Stand(capabilities(renderer.family, **{"recipes" if what == "recipe" else what: other}))
    with pytest.raises(FingerprintError, match=f"for the {what} .* serves {other[0] if what == 'recipe' else other}"):
        ask(stand, prompt)
    assert stand.generated == []


def test_what_it_is_is_asked_once(plugin: Stand, prompt: Rendered) -> None:
    ask(plugin, prompt, times=3)
    assert plugin.paths == ["capabilities", "generate", "generate", "generate"]


def test_capabilities_that_cannot_be_read_are_no_reason_to_guess(prompt: Rendered) -> None:
    stand = Stand({"engine": "?"})
    with pytest.raises(EngineAnswerError, match="what the engine says of itself cannot be read"):
        ask(stand, prompt)
    assert stand.generated == []


# What a request says


@pytest.mark.parametrize("says", [True, False])
def test_vision_tokens_can_never_be_sampled(renderer: Renderer, plain: Rendered, says: bool) -> None:
    stand = Stand(capabilities(renderer.family) if says else None, [expanding(plain)])
    ask(stand, plain)
    unsampled = renderer.family.placeholders.unsampled
    assert unsampled
    assert stand.generated[0].body["sampling_params"]["logit_bias"] == {str(token): NEVER for token in unsampled}


def test_priority_salt_name_and_session_are_sent(plugin: Stand, plain: Rendered) -> None:
    ask(plugin, plain, request_id="step/3", session="a\nb", priority=-7, cache_salt="s")
    (sent,) = plugin.generated
    assert (sent.body["request_id"], sent.body["priority"], sent.body["cache_salt"]) == ("step/3", -7, "s")
    ask(plugin, plain, session="a\nb")
    ask(plugin, plain, session="c")
    named = [one.session for one in plugin.generated]
    assert named[0] == named[1] != named[2]
    assert "priority" not in plugin.generated[1].body


# Trying again


@pytest.mark.parametrize(
    "fails",
    [drop, half, refusing(500), refusing(502), refusing(503), refusing(504), unstructured],
    ids=lambda f: f.__name__,
)
def test_what_may_pass_by_itself_is_tried_again(plugin: Stand, prompt: Rendered, fails: Behaviour) -> None:
    plugin.script = [fails, fails]
    assert ask(plugin, prompt).token_ids == [5]
    assert len(plugin.generated) == 3
    assert len(bodies(plugin.generated)) == 1


@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 404, 408, 409, 413, 422, 429])
def test_what_the_engine_refuses_is_not_tried_again(plugin: Stand, prompt: Rendered, status: int) -> None:
    wire = {"type": "grid", "param": "features.kwargs_data.image", "index": 1}
    plugin.script = [refusing(status, headers={"location": "/inference/v1/generate"}, **wire)]
    with pytest.raises(
        EngineRefusedError, match=rf"^features.kwargs_data.image: image 1: request r: .*{status} grid"
    ) as one:
        ask(plugin, prompt)
    assert (one.value.field, one.value.index) == ("features.kwargs_data.image", 1)
    assert len(plugin.generated) == 1


@pytest.mark.parametrize("fails", [drop, refusing(500)], ids=["drop", "500"])
def test_a_request_that_brings_engines_down_is_given_up(plugin: Stand, prompt: Rendered, fails: Behaviour) -> None:
    plugin.script = [fails] * 100
    with pytest.raises(EngineUnavailableError):
        ask(plugin, prompt)
    assert len(plugin.generated) == 4


@pytest.mark.parametrize("fails", [refusing(503), unstructured], ids=["503", "gateway"])
def test_a_server_that_is_not_there_is_waited_for_as_long_as_patience_lasts(
    plugin: Stand, prompt: Rendered, fails: Behaviour
) -> None:
    plugin.script = [fails] * 8
    assert ask(plugin, prompt).token_ids == [5]
    assert len(plugin.generated) == 9
    plugin.script = [fails] * 1000
    with pytest.raises(EngineUnavailableError, match="the engine failed"):
        ask(plugin, prompt, client={"patience": 2.5})


@pytest.mark.parametrize(
    "after", [lambda: "1", lambda: formatdate(time.time() + 5, usegmt=True)], ids=["seconds", "date"]
)
def test_retry_after_is_heeded(plugin: Stand, prompt: Rendered, after: Callable[[], str]) -> None:
    plugin.script = [refusing(503, headers={"retry-after": after()})]
    ask(plugin, prompt)
    first, second = plugin.generated
    assert second.at - first.at >= 0.95


@pytest.mark.parametrize("after", ["-3", "nan", "soon", "inf", "", "Mon, 99 Zzz 2026 00:00:00 GMT"])
def test_a_retry_after_that_says_nothing_is_passed_over(plugin: Stand, prompt: Rendered, after: str) -> None:
    plugin.script = [refusing(503, headers={"retry-after": after})]
    assert ask(plugin, prompt).token_ids == [5]


def test_a_retry_after_is_heeded_within_bounds(
    plugin: Stand, prompt: Rendered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tries, "LONGEST_AFTER_S", 0.2)
    plugin.script = [refusing(503, headers={"retry-after": "86400"})]
    assert ask(plugin, prompt).token_ids == [5]


def test_an_address_where_nobody_listens_is_said_to_be_one(prompt: Rendered) -> None:
    async def asked() -> None:
        async with EngineClient("http://127.0.0.1:9", patience=0.3) as engine:
            await engine.generate(prompt, SAMPLING, request_id="r")

    with pytest.raises(EngineUnavailableError, match=r"^request r: the engine cannot be reached .*127\.0\.0\.1:9"):
        asyncio.run(asked())


@pytest.mark.parametrize("urls", ["127.0.0.1:8000", "ftp://a", []])
def test_an_address_that_is_none_is_refused(urls: Any) -> None:
    async def made() -> None:
        EngineClient(urls)

    with pytest.raises(ConfigError):
        asyncio.run(made())


# Time


def test_a_call_ends_in_time(plugin: Stand, prompt: Rendered) -> None:
    plugin.script = [refusing(500), never]
    said = r"request r: the engine gave no answer within 2 seconds; before that the engine failed: .*500"
    with pytest.raises(EngineUnavailableError, match=said):
        ask(plugin, prompt, client={"timeout": 2.0})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the server sets no event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("leaves", ["cancelled", "late"])
def test_a_request_that_nobody_waits_for_is_closed(plugin: Stand, prompt: Rendered, leaves: str) -> None:
    """So that the engine stops sampling for it."""

    async def leave() -> None:
        plugin.script = [never]
        limits = FAR if leaves == "cancelled" else {"timeout": 1.0}
        async with plugin, EngineClient(plugin.url, **limits) as engine:
            asking = asyncio.create_task(engine.generate(prompt, SAMPLING, request_id="r"))
            await until(lambda: len(plugin.generated) == 1)
            if leaves == "cancelled":
                asking.cancel()
            with pytest.raises((asyncio.CancelledError, EngineUnavailableError)):
                await asking
            await until(lambda: plugin.left == 1)
            # What it left behind does not stand in others' way.
            assert (await engine.generate(prompt, SAMPLING, request_id="r")).token_ids == [5]

    asyncio.run(leave())


# Answers


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"receipt": {"referenced": 1, "verified": 1, "decoded": 1, "consumed": 0}}, ReceiptError),
        ({"receipt": None}, ReceiptError),
        ({"choice": {"logprobs": None}}, EngineAnswerError),
        ({"choice": {"logprobs": {"content": [{"token_id": 6, "logprob": -0.5}]}}}, EngineAnswerError),
        ({"choice": {"logprobs": {"content": [{"token_id": 5, "logprob": -9999.0}]}}}, EngineAnswerError),
        ({"choice": {"logprobs": {"content": [{"token_id": 5}]}}}, EngineAnswerError),
        ({"choice": {"logprobs": {"content": [{"token": " five", "logprob": -0.5}]}}}, EngineAnswerError),
        ({"choice": {"logprobs": {"content": [{"token": "token_id:6", "logprob": -0.5}]}}}, EngineAnswerError),
        ({"choice": {"token_ids": []}}, EngineAnswerError),
        ({"choices": []}, EngineAnswerError),
        ({"choices": None}, EngineAnswerError),
    ],
)
def test_an_answer_that_breaks_the_contract_is_not_used(
    renderer: Renderer, plugin: Stand, answer: dict[str, Any], error: type[FilmrollError]
) -> None:
    plugin.script = [saying(**answer)]
    with pytest.raises(error, match=r"^request r: "):
        ask(plugin, prompt_of(renderer, (32, 32)))
    assert len(plugin.generated) == 1


@pytest.mark.parametrize("named", [{"token_id": 5}, {"token": "token_id:5"}, {"token_id": 5, "token": "token_id:5"}])
def test_logprobs_are_read_in_both_forms(renderer: Renderer, plugin: Stand, named: dict[str, Any]) -> None:
    plugin.script = [saying(choice={"logprobs": {"content": [named | {"logprob": -0.25, "rank": 1}]}})]
    assert ask(plugin, prompt_of(renderer, (32, 32))).logprobs == [-0.25]


# What a stock vLLM made of the prompt


def test_a_prompt_that_the_engine_expanded_otherwise_is_an_error_that_shows_both(renderer: Renderer) -> None:
    prompt = prompt_of(renderer, (32, 32), (64, 32))
    ours = prompt.expanded()
    place, pad = ours.offsets[1], renderer.family.placeholders.pad
    theirs = ours.token_ids.tolist()
    theirs.insert(place, pad)
    stock = Stand(script=[expanding(prompt, prompt_token_ids=theirs)])
    with pytest.raises(EngineAnswerError) as refused:
        ask(stock, prompt)
    said, first = str(refused.value), place + 2
    assert (refused.value.field, refused.value.index) == ("prompt_token_ids", 1)
    assert f"they differ at token {first}, from {first - 4} on ours are" in said
    for tokens in (ours.token_ids.tolist(), theirs):
        assert f"{' '.join(map(str, tokens[first - 4 : first + 8]))} ({len(tokens)} in all)" in said


@pytest.mark.parametrize("cut", [slice(0, -1), slice(0, 0), slice(1, None)])
def test_a_prompt_that_lacks_tokens_is_an_error(prompt: Rendered, cut: slice) -> None:
    stock = Stand(script=[expanding(prompt, prompt_token_ids=prompt.expanded().token_ids.tolist()[cut])])
    with pytest.raises(EngineAnswerError, match="other tokens of the prompt"):
        ask(stock, prompt)


def test_an_engine_that_does_not_say_what_it_made_is_not_believed(prompt: Rendered) -> None:
    with pytest.raises(EngineAnswerError, match="does not say which tokens"):
        ask(Stand(script=[expanding(prompt, prompt_token_ids=None)]), prompt)


def moved(places: list[dict[str, int]]) -> None:
    places[1]["offset"] -= 1


def shortened(places: list[dict[str, int]]) -> None:
    places[1]["length"] -= 1


@pytest.mark.parametrize(
    ("change", "index"),
    [(moved, 1), (shortened, 1), (lambda places: places.pop(), 1), (lambda places: places.clear(), 0)],
)
def test_images_that_the_engine_has_placed_elsewhere_are_an_error(
    prompt: Rendered, change: Callable[[list[dict[str, int]]], Any], index: int
) -> None:
    offsets = prompt.expanded().offsets
    places = [{"offset": at, "length": one.tokens} for at, one in zip(offsets, prompt.images, strict=True)]
    change(places)
    with pytest.raises(EngineAnswerError, match=f"we at token {offsets[index]}, ") as refused:
        ask(Stand(script=[expanding(prompt, mm_placeholders={"image": places})]), prompt)
    assert (refused.value.field, refused.value.index) == ("mm_placeholders", index)


def test_a_prompt_without_images_is_compared_as_well(plain: Rendered) -> None:
    assert ask(Stand(script=[expanding(plain, mm_placeholders=None)]), plain).receipt == Receipt()
    with pytest.raises(EngineAnswerError, match="it at token 0, 1 long, we at no place"):
        ask(Stand(script=[expanding(plain, mm_placeholders={"image": [{"offset": 0, "length": 1}]})]), plain)


# References by their hash


@pytest.fixture
def remembering(renderer: Renderer) -> Stand:
    return Stand(capabilities(renderer.family, hashes=True))


def test_a_reference_that_was_answered_for_is_sent_as_its_hash(remembering: Stand, renderer: Renderer) -> None:
    one, two = prompt_of(renderer, (32, 32)), prompt_of(renderer, (32, 32), (64, 32))

    async def converse() -> None:
        async with remembering, EngineClient(remembering.url, **FAR) as engine:
            for prompt in (one, two, two):
                done = await engine.generate(prompt, SAMPLING, request_id="r")
                assert done.receipt.consumed == len(prompt.images)
                assert done.request_bytes == len(remembering.generated[-1].raw)

    asyncio.run(converse())
    first, second, third = (asked.body["features"] for asked in remembering.generated)
    texts = second["kwargs_data"]["image"]
    assert first["kwargs_data"]["image"][0].startswith("mmraw:")
    assert texts[0] is None
    assert second["mm_hashes"]["image"] == [
        digest_of(first["kwargs_data"]["image"][0]),
        two.images[1].image.sha256,
    ]
    assert third["kwargs_data"]["image"] == [None, None]
    assert third["mm_hashes"]["image"][1] == digest_of(texts[1])


def test_what_an_engine_has_forgotten_is_sent_whole(remembering: Stand, prompt: Rendered) -> None:
    async def converse() -> Completion:
        async with remembering, EngineClient(remembering.url, **FAR) as engine:
            await engine.generate(prompt, SAMPLING, request_id="r")
            remembering.seen.clear()
            done = await engine.generate(prompt, SAMPLING, request_id="r")
            await engine.generate(prompt, SAMPLING, request_id="r")
            return done

    done = asyncio.run(converse())
    whole, hashes, again, known = remembering.generated
    assert again.raw == whole.raw
    assert known.raw == hashes.raw
    assert len(hashes.raw) < len(whole.raw) / 2
    assert done.request_bytes == len(hashes.raw) + len(again.raw)


def test_what_was_not_answered_for_is_not_taken_as_seen(remembering: Stand, prompt: Rendered) -> None:
    remembering.script = [refusing(500), refusing(400)]

    async def converse() -> None:
        async with remembering, EngineClient(remembering.url, **FAR) as engine:
            with pytest.raises(EngineRefusedError):
                await engine.generate(prompt, SAMPLING, request_id="r")
            await engine.generate(prompt, SAMPLING, request_id="r")

    asyncio.run(converse())
    assert len(bodies(remembering.generated)) == 1


def test_an_engine_that_takes_no_hashes_is_sent_none(plugin: Stand, prompt: Rendered) -> None:
    ask(plugin, prompt, times=2)
    assert len(bodies(plugin.generated)) == 1


def test_an_engine_that_knows_not_even_whole_references_is_not_asked_for_ever(
    remembering: Stand, prompt: Rendered
) -> None:
    remembering.script = [refusing(404, type="reference_unknown")] * 100
    with pytest.raises(FilmrollError, match="reference_unknown"):
        ask(remembering, prompt)
    assert len(remembering.generated) == 2
