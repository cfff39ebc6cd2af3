"""The engine takes new weights between batches, whole, or keeps the ones it has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from filmroll.engine.embedded.engine import EmbeddedEngine
from filmroll.engine.weights import FILE, write_weights
from filmroll.errors import WeightsError
from filmroll.materialize.feed import load_model
from filmroll.wire.generate import GenerateAnswer, GenerateRequest
from tests.engine.conftest import Oracle


@pytest.fixture
def weights_dir(engine: EmbeddedEngine, oracle: Any) -> Iterator[Path]:
    """Where the engine looks; afterwards it serves the checkpoint's own weights again, as version 0."""
    folder = engine._weights_dir
    assert folder is not None
    write_weights(oracle.model.state_dict(), folder, 0)
    yield folder
    asyncio.run(engine.update_weights(0))


def changed(desk: Any) -> Any:
    """The model after some training."""
    model = load_model(desk.model_dir)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


def outcome(answer: GenerateAnswer) -> tuple[list[int], str]:
    choice = answer.choices[0]
    assert choice.weight_versions is not None
    (span,) = choice.weight_versions
    assert (span.start, span.end) == (0, len(choice.token_ids))
    return choice.token_ids, span.version


def test_outputs_follow_the_weights_and_return_exactly(desk: Any, ask: Any, weights_dir: Path, tmp_path: Path) -> None:
    request = desk.request([desk.picture(4)], temperature=0, max_tokens=12)
    before = ask.one(request)
    model = changed(desk)
    write_weights(model.state_dict(), weights_dir, 7)
    assert asyncio.run(ask.engine.update_weights(7)) == ask.engine.version == 7
    after = ask.one(request)
    assert outcome(after) == (expected(model, desk, request), "7")
    assert outcome(after)[0] != outcome(before)[0]
    asyncio.run(ask.engine.update_weights(0))
    again = ask.one(request)
    assert outcome(again) == (outcome(before)[0], "0")
    assert again.choices[0].logprobs == before.choices[0].logprobs


def expected(model: Any, desk: Any, request: Any) -> list[int]:
    """Greedy tokens from whole forwards of a model that was never in an engine."""
    from filmroll.materialize.feed import suppress
    from filmroll.materialize.materializer import Materializer
    from filmroll.wire.reference import read_reference
    from tests.plain import plain_inputs

    images = Materializer(desk.store, desk.family).load(
        [read_reference(text) for text in request.features.kwargs_data["image"]]
    )
    row = list(request.token_ids)
    with torch.no_grad():
        for _ in range(request.sampling_params.max_tokens):
            logits = model(**plain_inputs(desk.family, [row], images.arrays)).logits
            row.append(int(suppress(logits, desk.family)[0, -1].argmax()))
    return row[len(request.token_ids) :]


def test_wrong_weights_are_refused_and_the_old_ones_serve_on(desk: Any, ask: Any, weights_dir: Path) -> None:
    request = desk.request([desk.picture(4)], temperature=0, max_tokens=6)
    before = ask.one(request)
    good = changed(desk).state_dict()
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    damaged = write_weights(good, weights_dir, 1) / FILE
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    write_weights(good | {name: good[name].T[:, :5]}, weights_dir, 2)
    write_weights({key: value for key, value in good.items() if key != name}, weights_dir, 3)
    write_weights(good | {"extra": torch.ones(1)}, weights_dir, 4)
    for version, problem in ((1, "hash"), (2, "shape"), (3, "lack"), (4, "too many"), (5, "no weights of version")):
        with pytest.raises(WeightsError, match=problem) as caught:
            asyncio.run(ask.engine.update_weights(version))
        assert caught.value.field == "version"
    after = ask.one(request)
    assert outcome(after) == outcome(before)
    assert after.choices[0].logprobs == before.choices[0].logprobs


async def begun(engine: EmbeddedEngine, request: GenerateRequest) -> asyncio.Task[GenerateAnswer]:
    """A request of which the first token is sampled."""
    heard = asyncio.Event()
    running = asyncio.create_task(engine.generate(request, heard=lambda *_: heard.set()))
    await heard.wait()
    return running


async def until(there: Callable[[], bool]) -> None:
    while not there():  # noqa: ASYNC110 it is asked in one place and comes true in many
        await asyncio.sleep(0.01)


def test_rows_in_flight_finish_on_the_weights_they_began_with(
    desk: Any, engine: EmbeddedEngine, weights_dir: Path, oracle: Any
) -> None:
    write_weights(changed(desk).state_dict(), weights_dir, 9)
    early = desk.request([desk.picture(1)], max_tokens=1000)
    late = desk.request([desk.picture(2)], max_tokens=3)

    async def update_meanwhile() -> tuple[GenerateAnswer, GenerateAnswer]:
        first = await begun(engine, early)
        update = asyncio.create_task(engine.update_weights(9))
        await asyncio.sleep(0.1)
        assert not first.done(), "too fast to show anything"
        await update
        assert first.done()
        return await first, await engine.generate(late)

    first, second = asyncio.run(update_meanwhile())
    assert (outcome(first)[1], outcome(second)[1]) == ("0", "9")
    assert oracle.difference(early, first) < 1e-5
    assert oracle.difference(late, second) > 1e-3


def test_new_rows_wait_for_an_update_instead_of_delaying_it(
    desk: Any, engine: EmbeddedEngine, weights_dir: Path
) -> None:
    """A stream of requests that never lets the batch run empty must not hold off new weights."""
    write_weights(changed(desk).state_dict(), weights_dir, 9)

    async def stream() -> list[str]:
        versions: list[str] = []

        async def client(number: int) -> None:
            while not versions.count("9"):
                request = desk.request(seed=number, max_tokens=20 + number)
                versions.append(outcome(await engine.generate(request))[1])

        clients = [asyncio.create_task(client(number)) for number in range(6)]
        await until(lambda: bool(versions))
        await asyncio.wait_for(engine.update_weights(9), timeout=60)
        await asyncio.gather(*clients)
        return versions

    assert set(asyncio.run(stream())) == {"0", "9"}


def test_under_load_every_answer_is_wholly_of_the_version_it_names(
    desk: Any, engine: EmbeddedEngine, weights_dir: Path, oracle: Any
) -> None:
    """16 requests at a time, with images, while versions come and go, one of which is in other numbers."""
    halved = {name: value.bfloat16() for name, value in changed(desk).state_dict().items()}
    write_weights(halved, weights_dir, 8)
    write_weights(changed(desk).state_dict(), weights_dir, 9)
    models = {"0": oracle, "8": Oracle(desk), "9": Oracle(desk)}
    models["8"].model.load_state_dict(halved)
    models["9"].model.load_state_dict(changed(desk).state_dict())
    asked: list[tuple[Any, GenerateAnswer]] = []

    async def stream() -> None:
        done = False

        async def client(number: int) -> None:
            turn = 0
            while not done:
                pictures = [desk.picture((number + one) % 6) for one in range(1 + number % 3)]
                request = desk.request(pictures, seed=100 * number + turn, max_tokens=4 + number)
                asked.append((request, await engine.generate(request)))
                turn += 1

        def answered_by(version: int) -> Callable[[], bool]:
            """Whether 16 answers more are there, all of which are of this version but for those under way before."""
            enough = len(asked) + 16
            return lambda: len(asked) > enough and outcome(asked[-1][1])[1] == str(version)

        clients = [asyncio.create_task(client(number)) for number in range(16)]
        await until(answered_by(0))
        for version in (9, 8, 0, 9):
            await engine.update_weights(version)
            await until(answered_by(version))
        done = True
        await asyncio.gather(*clients)

    asyncio.run(stream())
    versions = [outcome(answer)[1] for _, answer in asked]
    assert set(versions) == {"0", "8", "9"}
    for (request, answer), version in zip(asked, versions, strict=True):
        assert models[version].difference(request, answer) < 1e-4


def test_an_update_that_is_given_up_before_its_turn_changes_nothing(
    desk: Any, engine: EmbeddedEngine, weights_dir: Path, oracle: Any
) -> None:
    write_weights(changed(desk).state_dict(), weights_dir, 9)
    early = desk.request([desk.picture(1)], max_tokens=1000)
    late = desk.request([desk.picture(2)], max_tokens=3)

    async def give_up() -> list[GenerateAnswer]:
        first = await begun(engine, early)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.update_weights(9), timeout=0.1)
        assert not first.done(), "too fast to show anything"
        return [await first, await engine.generate(late)]

    for request, answer in zip((early, late), asyncio.run(give_up()), strict=True):
        assert outcome(answer)[1] == "0"
        assert oracle.difference(request, answer) < 1e-5


def test_updates_at_the_same_time_leave_one_of_them(desk: Any, ask: Any, weights_dir: Path, oracle: Any) -> None:
    write_weights(changed(desk).state_dict(), weights_dir, 9)

    async def together() -> list[int]:
        return await asyncio.gather(*map(ask.engine.update_weights, (9, 0, 9, 0, 9)))

    assert asyncio.run(together()) == [9, 0, 9, 0, 9]
    request = desk.request([desk.picture(3)], max_tokens=3)
    answer = ask.one(request)
    assert outcome(answer)[1] == str(ask.engine.version)
    assert (oracle.difference(request, answer) < 1e-5) == (ask.engine.version == 0)


def test_broken_weights_give_an_error_not_a_token(desk: Any, ask: Any, weights_dir: Path, oracle: Any) -> None:
    from filmroll.errors import EngineError

    nan = {name: torch.full_like(value, float("nan")) for name, value in oracle.model.state_dict().items()}
    write_weights(nan, weights_dir, 1)
    asyncio.run(ask.engine.update_weights(1))
    with pytest.raises(EngineError, match="not finite"):
        ask.one(desk.request([desk.picture(1)]))
    asyncio.run(ask.engine.update_weights(0))
    ask.one(desk.request([desk.picture(1)]))
