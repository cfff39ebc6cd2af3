"""Several servers: whose turn a conversation is, what happens when one is lost, and by which weights they answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from filmroll.errors import EngineRefusedError, EngineUnavailableError, FingerprintError
from filmroll.render import Rendered, Renderer
from filmroll.rollout import Completion, EngineClient
from filmroll.wire.generate import SamplingParams
from tests.rollout.stands import Behaviour, Stand, answer, capabilities, drop, prompt_of, refusing

SAMPLING = SamplingParams(max_tokens=6)
FAR = {"timeout": 120.0, "patience": 60.0}
"""Limits that a slow machine does not reach."""


@pytest.fixture
def prompt(renderer: Renderer) -> Rendered:
    return prompt_of(renderer, (32, 32))


@pytest.fixture
def stands(renderer: Renderer) -> list[Stand]:
    return [Stand(capabilities(renderer.family, hashes=True)) for _ in range(4)]


@asynccontextmanager
async def asking(stands: Sequence[Stand], **limits: Any) -> AsyncIterator[EngineClient]:
    """A client of servers that run."""
    async with AsyncExitStack() as stack:
        for stand in stands:
            await stack.enter_async_context(stand)
        yield await stack.enter_async_context(EngineClient([one.url for one in stands], "tiny", **(FAR | limits)))


async def one(engine: EngineClient, prompt: Rendered, session: str) -> Completion:
    return await engine.generate(prompt, SAMPLING, request_id=f"{session}/turn", session=session)


async def many(engine: EngineClient, prompt: Rendered, sessions: int) -> list[Completion]:
    return await asyncio.gather(*(one(engine, prompt, f"session {number}") for number in range(sessions)))


def homes(stands: Sequence[Stand]) -> dict[str, int]:
    """Which stand has answered each session; an error if several have."""
    places = {(one.session, number) for number, stand in enumerate(stands) for one in stand.generated}
    assert len({session for session, _ in places}) == len(places)
    return dict(places)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the servers set no event
            await asyncio.sleep(0.01)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


# Sessions


def test_a_session_stays_with_its_server_and_sessions_spread(stands: list[Stand], prompt: Rendered) -> None:
    async def play() -> None:
        async with asking(stands) as engine:
            for _ in range(3):
                await many(engine, prompt, 200)

    run(play())
    shares = Counter(homes(stands).values())
    # 50 each on average, give or take 6.
    assert set(shares) == {0, 1, 2, 3}
    assert min(shares.values()) >= 15


def test_the_order_of_the_urls_decides_nothing_and_a_new_server_takes_only_its_own(
    stands: list[Stand], prompt: Rendered
) -> None:
    found: list[dict[str, int]] = []

    async def play() -> None:
        async with asking(stands):
            for some in (stands[:3], stands[2::-1], stands):
                for stand in stands:
                    stand.asked.clear()
                async with EngineClient([one.url for one in some], **FAR) as engine:
                    await many(engine, prompt, 100)
                found.append(homes(stands))

    run(play())
    first, reversed_order, with_fourth = found
    assert reversed_order == first
    moved = {session for session, home in with_fourth.items() if home != first[session]}
    assert moved == {session for session, home in with_fourth.items() if home == 3}
    assert moved


def test_servers_of_other_models_are_named(stands: list[Stand], renderer: Renderer, prompt: Rendered) -> None:
    stands[1].says = capabilities(renderer.family, fingerprint="0" * 32)

    async def play() -> None:
        async with asking(stands[:2]) as engine:
            with pytest.raises(FingerprintError, match=f"serves {'0' * 32}"):
                await many(engine, prompt, 32)

    run(play())
    assert stands[1].generated == []


# Servers that are lost


@pytest.mark.parametrize("fails", [drop, refusing(500), refusing(503)], ids=["drop", "500", "503"])
def test_what_one_server_fails_at_another_does(stands: list[Stand], prompt: Rendered, fails: Behaviour) -> None:
    for stand in stands[:2]:
        stand.script = [fails] * 3

    async def play() -> None:
        async with asking(stands[:2]) as engine:
            assert len(await many(engine, prompt, 16)) == 16

    run(play())
    assert sum(len(stand.generated) for stand in stands) == 16 + 6


def test_sessions_of_a_server_that_dies_go_elsewhere_and_come_back_with_it(
    stands: list[Stand], prompt: Rendered
) -> None:
    pair = stands[:2]

    async def play() -> None:
        async with asking(pair) as engine:
            await many(engine, prompt, 32)
            before = homes(pair)
            await pair[0].stop()
            for stand in pair:
                stand.asked.clear()
            await many(engine, prompt, 32)
            assert set(homes(pair).values()) == {1}
            await pair[0].start()
            while not pair[0].generated:
                await many(engine, prompt, 32)
            # It has been started anew, and is not believed to know what the old one knew.
            assert pair[0].generated[0].body["features"]["kwargs_data"]["image"][0] is not None
            for stand in pair:
                stand.asked.clear()
            await many(engine, prompt, 32)
            assert homes(pair) == before

    run(play())


def test_a_server_that_is_not_there_from_the_beginning_is_done_without(stands: list[Stand], prompt: Rendered) -> None:
    async def play() -> None:
        async with asking(stands[:2]) as engine:
            await stands[0].stop()
            assert len(await many(engine, prompt, 8)) == 8

    run(play())
    assert len(stands[1].generated) == 8


def test_requests_wait_for_the_only_server_to_come_back(stands: list[Stand], prompt: Rendered) -> None:
    (stand, *_) = stands

    async def play() -> None:
        async with asking([stand]) as engine:
            await one(engine, prompt, "warm")
            await stand.stop()
            waiting = asyncio.create_task(many(engine, prompt, 32))
            await asyncio.sleep(0.5)
            assert not waiting.done()
            await stand.start()
            assert len(await waiting) == 32

    run(play())
    # Whoever waits, one looks for it.
    assert stand.paths.count("capabilities") <= 3


def test_when_none_is_there_patience_ends(stands: list[Stand], prompt: Rendered) -> None:
    async def play() -> None:
        async with asking(stands[:2], patience=0.5) as engine:
            for stand in stands[:2]:
                await stand.stop()
            with pytest.raises(EngineUnavailableError, match="request a/turn: the engine cannot be reached"):
                await one(engine, prompt, "a")

    run(play())


def test_nothing_is_looked_for_once_the_client_is_closed(stands: list[Stand], prompt: Rendered) -> None:
    async def play() -> None:
        async with asking(stands[:2]) as engine:
            await many(engine, prompt, 8)
            await stands[0].stop()
            await many(engine, prompt, 8)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(play())


# Weights


def test_an_update_reaches_every_server(stands: list[Stand], prompt: Rendered) -> None:
    async def play() -> None:
        async with asking(stands) as engine:
            await engine.update_weights(3)
            assert [stand.version for stand in stands] == [3] * 4
            assert {done.version for done in await many(engine, prompt, 40)} == {3}

    run(play())


def test_a_server_that_was_away_is_brought_up_to_date_before_it_is_used(stands: list[Stand], prompt: Rendered) -> None:
    pair = stands[:2]

    async def play() -> None:
        # Nobody waits for the one that is away while the other is there.
        async with asking(pair, timeout=1e6, patience=1e6) as engine:
            await engine.update_weights(1)
            await many(engine, prompt, 16)
            await pair[0].stop()
            await engine.update_weights(2)
            assert pair[1].version == 2
            assert {done.version for done in await many(engine, prompt, 16)} == {2}
            pair[0].asked.clear()
            await pair[0].start()
            await until(lambda: pair[0].version == 2)
            done = await many(engine, prompt, 64)
            assert {one.version for one in done} == {2}
            assert pair[0].generated

    run(play())
    assert pair[0].paths[:4] == ["capabilities", "weight_info", "update_weights", "generate"]


def test_a_server_that_was_started_anew_unnoticed_is_found_out_by_its_answers(
    stands: list[Stand], prompt: Rendered
) -> None:
    pair = stands[:2]

    async def play() -> None:
        async with asking(pair) as engine:
            await engine.update_weights(5)
            pair[0].version = 0
            assert {done.version for done in await many(engine, prompt, 32)} == {5}
            await until(lambda: pair[0].version == 5)

    run(play())


def test_a_server_that_was_given_the_first_weights_is_given_them_again(stands: list[Stand], prompt: Rendered) -> None:
    """An engine that was never told says 0 as well."""
    (stand, *_) = stands

    async def play() -> None:
        async with asking([stand]) as engine:
            await engine.update_weights(0)
            await stand.stop()
            asked = asyncio.create_task(one(engine, prompt, "a"))
            await asyncio.sleep(0.3)
            stand.asked.clear()
            await stand.start()
            await asked

    run(play())
    assert stand.paths == ["capabilities", "update_weights", "generate"]


def test_who_only_asks_can_be_told_what_others_have_published(stands: list[Stand], prompt: Rendered) -> None:
    pair = stands[:2]

    async def play() -> None:
        async with asking(pair) as trainer, EngineClient([one.url for one in pair], **FAR) as worker:
            await many(worker, prompt, 8)
            await trainer.update_weights(4)
            worker.expect_weights(4)
            pair[1].version = 2
            assert {done.version for done in await many(worker, prompt, 32)} == {4}
            assert pair[1].version == 4

    run(play())


def test_an_answer_that_began_before_an_update_is_used(stands: list[Stand], prompt: Rendered) -> None:
    """It is of the weights that the server had when it was asked."""
    (stand, *_) = stands

    async def play() -> None:
        async with asking([stand]) as engine:
            await engine.update_weights(1)
            begun, go = asyncio.Event(), asyncio.Event()

            async def slowly(stand: Stand, request: Any, body: Any) -> Any:
                begun.set()
                await go.wait()
                stand.version = 1
                response = await answer(stand, request, body)
                stand.version = 2
                return response

            stand.script = [slowly]
            asked = asyncio.create_task(one(engine, prompt, "a"))
            await begun.wait()
            await engine.update_weights(2)
            go.set()
            assert (await asked).version == 1
            assert (await one(engine, prompt, "a")).version == 2

    run(play())
    assert len(stand.generated) == 2


def test_older_weights_can_be_published_again(stands: list[Stand], prompt: Rendered) -> None:
    async def play() -> None:
        async with asking(stands[:2]) as engine:
            for version in (7, 2):
                await engine.update_weights(version)
                assert {done.version for done in await many(engine, prompt, 8)} == {version}

    run(play())


def test_weights_that_all_refuse_change_nothing(stands: list[Stand], prompt: Rendered) -> None:
    async def play() -> None:
        async with asking(stands[:2]) as engine:
            await engine.update_weights(1)
            for stand in stands[:2]:
                stand.refuses = {2}
            with pytest.raises(EngineRefusedError, match="400 weights"):
                await engine.update_weights(2)
            assert {done.version for done in await many(engine, prompt, 8)} == {1}
            for stand in stands[:2]:
                stand.refuses = set()
            await engine.update_weights(2)
            assert {done.version for done in await many(engine, prompt, 8)} == {2}

    run(play())


def test_a_server_that_refuses_what_others_took_is_used_no_longer(stands: list[Stand], prompt: Rendered) -> None:
    pair = stands[:2]
    pair[0].refuses = {2}

    async def play() -> None:
        async with asking(pair) as engine:
            await engine.update_weights(1)
            with pytest.raises(EngineRefusedError, match="400 weights"):
                await engine.update_weights(2)
            pair[0].asked.clear()
            assert {done.version for done in await many(engine, prompt, 16)} == {2}
            assert pair[0].generated == []
            await engine.update_weights(3)
            await until(lambda: pair[0].version == 3)
            assert {done.version for done in await many(engine, prompt, 64)} == {3}
            assert pair[0].generated

    run(play())


def test_a_server_that_failed_at_an_update_is_used_again_once_it_has_it(stands: list[Stand], prompt: Rendered) -> None:
    pair = stands[:2]

    async def play() -> None:
        async with asking(pair) as engine:
            await engine.update_weights(1)
            # More often than one call asks it.
            pair[0].failing = 5
            await engine.update_weights(2)
            assert {done.version for done in await many(engine, prompt, 32)} == {2}
            await until(lambda: pair[0].version == 2)

    run(play())


def test_weights_that_no_server_gets_are_an_error(stands: list[Stand]) -> None:
    async def play() -> None:
        async with asking(stands[:2], patience=0.5) as engine:
            for stand in stands[:2]:
                await stand.stop()
            with pytest.raises(EngineUnavailableError, match="cannot be reached"):
                await engine.update_weights(1)
            # What could not be given then is given as soon as one is there.
            await stands[0].start()
            await until(lambda: stands[0].version == 1)

    run(play())
