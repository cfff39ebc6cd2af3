"""The embedded engine on a pretended GPU: the same answers, from tensors that stand where they have to."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import torch

from filmroll.engine.embedded.batch import Batch
from filmroll.engine.embedded.engine import EmbeddedEngine
from filmroll.engine.weights import write_weights
from filmroll.errors import EngineError, EngineUnavailableError
from filmroll.wire.generate import GenerateAnswer, GenerateRequest
from tests.engine.conftest import Asker, open_engine
from tests.engine.test_embedded_batching import tokens
from tests.engine.test_weight_updates import changed
from tests.pretended_gpu import Watched, join_in, pretended_gpu


@contextmanager
def engine_on_it(desk: Any, weights: Path | None = None, **options: Any) -> Iterator[tuple[EmbeddedEngine, Watched]]:
    with pretended_gpu() as gpu, open_engine(desk, weights, device="cuda", **options) as engine:
        engine._loop.between_batches(lambda: join_in(gpu)).result()
        yield engine, gpu


def logprobs(answers: Sequence[GenerateAnswer]) -> torch.Tensor:
    return torch.tensor([one.logprob for answer in answers for one in answer.choices[0].logprobs.content])


def of_every_kind(desk: Any) -> list[GenerateRequest]:
    """Rows that sample in different ways, together in a batch, and end at different times."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.6},
        {"logit_bias": {7: 30.0, 8: -2.5}},
        {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "logit_bias": {9: 3.0}},
    ]
    requests = []
    for number, kind in enumerate(kinds):
        pictures = [desk.picture(10 * number + one) for one in range(number % 4)]
        requests.append(desk.request(pictures, words=3 + number, seed=number, max_tokens=3 + 2 * number, **kind))
    return [seeded(request, number) for number, request in enumerate(requests)]


def seeded(request: GenerateRequest, seed: int) -> GenerateRequest:
    return msgspec.structs.replace(request, sampling_params=msgspec.structs.replace(request.sampling_params, seed=seed))


def test_it_answers_as_on_the_host(desk: Any, ask: Asker) -> None:
    requests = of_every_kind(desk)
    expected = ask.all(requests)
    with engine_on_it(desk) as (engine, _):
        answers = Asker(engine).all(requests)
    assert tokens(answers) == tokens(expected)
    torch.testing.assert_close(logprobs(answers), logprobs(expected), rtol=0, atol=1e-5)
    assert [answer.receipt for answer in answers] == [answer.receipt for answer in expected]


def test_rows_join_and_leave_there(desk: Any, ask: Asker) -> None:
    long = seeded(desk.request([desk.picture(1)], words=30, max_tokens=60), 0)
    late = [seeded(desk.request([desk.picture(n)], words=4, seed=n, max_tokens=4), n) for n in range(3)]

    async def together(engine: EmbeddedEngine) -> list[GenerateAnswer]:
        begun = asyncio.Event()
        first = asyncio.create_task(engine.generate(long, heard=lambda *_: begun.set()))
        await begun.wait()
        answers = await asyncio.gather(*map(engine.generate, late))
        assert not first.done(), "the late ones waited for the long one"
        return [await first, *answers]

    with engine_on_it(desk) as (engine, _):
        answers = asyncio.run(together(engine))
    expected = ask.all([long, *late])
    assert tokens(answers) == tokens(expected)
    torch.testing.assert_close(logprobs(answers), logprobs(expected), rtol=0, atol=1e-5)


def test_only_levels_go_there(desk: Any) -> None:
    pictures = [desk.picture(seed, (96, 96)) for seed in range(3)]
    with engine_on_it(desk) as (engine, gpu):
        before = len(gpu.sent)
        Asker(engine).one(desk.request([*pictures, pictures[0]], max_tokens=2))
        sent = gpu.sent[before:]
    levels = [one for one in sent if one.dtype == torch.uint8]
    assert [one.numel() for one in levels] == [3 * 96 * 96 * 3], "each picture once, with one temporal copy"
    table = desk.family.table.nbytes
    assert all(one.nbytes <= table for one in sent if one.is_floating_point())


def test_new_weights_are_taken_there(desk: Any, tmp_path: Path) -> None:
    request = desk.request([desk.picture(4)], temperature=0, max_tokens=8)
    write_weights(changed(desk).state_dict(), tmp_path, 3)
    with open_engine(desk, tmp_path) as host:
        asyncio.run(host.update_weights(3))
        expected = Asker(host).one(request)
    with engine_on_it(desk, tmp_path) as (engine, _):
        before = Asker(engine).one(request)
        asyncio.run(engine.update_weights(3))
        assert {one.device.type for one in engine._model.state_dict().values()} == {"cuda"}
        after = Asker(engine).one(request)
    assert tokens([after]) == tokens([expected]) != tokens([before])


def test_the_host_waits_once_for_a_token_of_every_row(desk: Any) -> None:
    """However many rows there are, whatever they ask for, and also where rows leave."""
    for rows in (1, 5):
        requests = [
            seeded(desk.request(words=5 + row, seed=row, max_tokens=20 - row, top_k=9, logit_bias={8: 1.0}), row)
            for row in range(rows)
        ]
        with engine_on_it(desk, batch_wait_ms=200) as (engine, gpu):
            before = len(gpu.waits)
            Asker(engine).all(requests)
            waits = Counter(gpu.waits[before:])
        assert [count for what, count in waits.items() if "to the host" in what] == [20]
        # transformers looks whether there is padding; the rest is the beginning.
        assert waits.total() <= 2 * 20 + 5, waits


@pytest.mark.parametrize("place", ["prefill", "sample", "advance"])
def test_a_gpu_that_has_failed_ends_the_engine(desk: Any, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Nothing that is asked of it afterwards is done, so whoever waits is told, and nobody else is let in."""

    def broken(*_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access at 0x7f3a")

    async def overlapping(engine: EmbeddedEngine) -> list[Any]:
        asked = [engine.generate(desk.request([desk.picture(n)], max_tokens=30)) for n in range(3)]
        return await asyncio.gather(*asked, return_exceptions=True)

    with open_engine(desk) as engine:
        monkeypatch.setattr(Batch, place, broken)
        answers = asyncio.run(overlapping(engine))
        error = engine.ended.exception(timeout=60)
        answers += asyncio.run(overlapping(engine))
    assert isinstance(error, EngineUnavailableError)
    assert len(answers) == 6
    for answer in answers:
        assert isinstance(answer, EngineUnavailableError)
        assert "GPU has failed" in str(answer)
        assert "0x7f3a" not in str(answer.wire())


def test_want_of_memory_does_not(desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with open_engine(desk) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(Batch, "advance", broken)
            with pytest.raises(EngineError, match="the model failed on this request"):
                Asker(engine).one(desk.request(max_tokens=3))
        Asker(engine).one(desk.request(max_tokens=3))
        assert not engine.ended.done()
    assert engine.ended.result() is None


PROGRAM = """
import sys, torch
from pathlib import Path
from filmroll.engine.embedded.batch import Batch
from filmroll.engine.embedded.server import serve
from filmroll.store import open_store
def broken(batch):
    raise torch.AcceleratorError("CUDA error: unspecified launch failure")
Batch.advance = broken
serve(Path(sys.argv[1]), open_store(sys.argv[2]), None, name="tiny", threads=1,
      on_ready=lambda url: print(url, flush=True))
"""


def test_its_server_ends_with_it(desk: Any) -> None:
    """By itself, and not as if all were well: a run starts it again."""
    command = [sys.executable, "-c", PROGRAM, str(desk.model_dir), str(desk.store_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            request = msgspec.json.encode(desk.request(max_tokens=4))
            answer = httpx.post(f"{url}/inference/v1/generate", content=request, timeout=120)
            assert answer.status_code == 503
            assert "engine_unavailable" in answer.text
            _, said = process.communicate(timeout=120)
            assert process.returncode != 0
            assert "the engine's GPU has failed" in said
        finally:
            process.kill()
