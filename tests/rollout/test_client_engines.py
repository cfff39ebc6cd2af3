"""The client and embedded engines in processes of their own: all ways, two servers, kill -9 in the middle."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from filmroll.engine.weights import write_weights
from filmroll.environments.color_codeword import ColorCodeword, ColorCodewordConfig
from filmroll.materialize.feed import load_model
from filmroll.render import Renderer, load_renderer
from filmroll.rollout import EngineClient
from filmroll.rollout.worker import Played, RolloutTask, Worker
from filmroll.store import open_store
from filmroll.wire.generate import SamplingParams
from filmroll.wire.receipt import Receipt
from tests.conftest import Served
from tests.rollout.stands import prompt_of

SAMPLING = SamplingParams(max_tokens=6)
LIKELIEST = SamplingParams(max_tokens=6, temperature=0)
FAR = {"timeout": 240.0, "patience": 120.0}

PROGRAM = """
import sys
from pathlib import Path
from filmroll.engine.embedded.server import serve
from filmroll.store import open_store
model, store, weights, port = sys.argv[1:]
serve(Path(model), open_store(store), Path(weights), name="tiny", threads=1, port=int(port),
      on_ready=lambda url: print(url, flush=True))
"""


@dataclass
class Engine:
    """An engine that can be killed, and started again at the same address."""

    model: Path
    store: Path
    weights: Path
    url: str = ""
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        port = self.url.rpartition(":")[2] or "0"
        command = [sys.executable, "-c", PROGRAM, *map(str, (self.model, self.store, self.weights)), port]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def wait(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def pair(tiny_model: Path, tmp_path: Path) -> Iterator[list[Engine]]:
    """Two engines that share store and weights."""
    engines = [Engine(tiny_model, tmp_path / "images", tmp_path / "weights") for _ in range(2)]
    open_store(tmp_path / "images")
    try:
        for engine in engines:
            engine.start()
        for engine in engines:
            engine.wait()
        yield engines
    finally:
        for engine in engines:
            engine.kill()


@pytest.fixture
def there(pair: list[Engine]) -> Renderer:
    return load_renderer(pair[0].model, open_store(pair[0].store))


def test_all_rollouts_finish_when_one_of_two_servers_is_killed(pair: list[Engine], there: Renderer) -> None:
    async def play() -> list[Played]:
        async with EngineClient([one.url for one in pair], "tiny", **FAR) as client:
            worker = Worker(ColorCodeword(ColorCodewordConfig()), there, client)
            answered = 0
            ask = client.generate

            async def counted(*args: object, **named: object) -> object:
                """One server is killed while its twentieth answer is on its way, among others."""
                nonlocal answered
                done = await ask(*args, **named)
                answered += 1
                if answered == 20:
                    pair[0].kill()
                return done

            client.generate = counted
            tasks = [RolloutTask(f"rollout_{number}", number, SAMPLING) for number in range(32)]
            return await asyncio.gather(*(worker.rollout(task) for task in tasks))

    played = asyncio.run(play())
    assert len(played) == 32
    for one in played:
        assert one.requests == 3
        assert one.receipt == Receipt(*[one.images_sent] * 4)
        assert [node.sampled for node in one.trajectory.nodes] == [False, True] * 3


def test_a_server_that_was_killed_is_given_the_newest_weights_before_it_answers(
    pair: list[Engine], there: Renderer
) -> None:
    state = load_model(pair[0].model).state_dict()
    for version in (1, 2):
        changed = {name: value + 0.01 * version * value.std() for name, value in state.items()}
        write_weights(changed, pair[0].weights, version)
    prompt = prompt_of(there, (32, 32))

    async def play() -> None:
        async with EngineClient([one.url for one in pair], "tiny", **FAR) as client:

            async def ask(sessions: int) -> list[tuple[int, list[float]]]:
                names = [f"session {number}" for number in range(sessions)]
                done = await asyncio.gather(
                    *(client.generate(prompt, LIKELIEST, request_id=name, session=name) for name in names)
                )
                return [(one.version, one.logprobs) for one in done]

            await client.update_weights(1)
            assert {version for version, _ in await ask(8)} == {1}
            pair[0].kill()
            await client.update_weights(2)
            (expected,) = await ask(1)
            pair[0].start()
            await asyncio.to_thread(pair[0].wait)
            pair[1].kill()
            # Only the one that was killed first is left: a fresh process, which began with version 0.
            for version, logprobs in await ask(8):
                assert version == 2 == expected[0]
                np.testing.assert_allclose(logprobs, expected[1], atol=1e-5)

    asyncio.run(play())


def test_urls_say_what_references_say(served: Served, tiny_model: Path) -> None:
    prompt = prompt_of(load_renderer(tiny_model, open_store(served.store)), (32, 32), (100, 60))

    async def both() -> None:
        async with EngineClient(served.url) as by_references, EngineClient(served.url, way="content_parts") as by_urls:
            one, other = [
                await client.generate(prompt, LIKELIEST, request_id="r") for client in (by_references, by_urls)
            ]
            assert one.token_ids == other.token_ids
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
            # This engine says what became of them whatever the way.
            assert one.receipt == other.receipt == Receipt(2, 2, 2, 2)
            assert other.request_bytes < one.request_bytes

    asyncio.run(both())


def test_references_that_the_engine_has_seen_are_sent_by_their_hash(served: Served, tiny_model: Path) -> None:
    prompt = prompt_of(load_renderer(tiny_model, open_store(served.store)), (64, 32), (60, 100))

    async def converse() -> None:
        async with EngineClient(served.url) as client:
            first, second = [await client.generate(prompt, LIKELIEST, request_id="r") for _ in range(2)]
        assert second.request_bytes < first.request_bytes - 600
        assert (second.token_ids, second.receipt) == (first.token_ids, first.receipt)

    asyncio.run(converse())
