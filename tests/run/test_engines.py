"""Engines that are killed in the middle of rollouts: the run goes on, nothing is lost, nothing is trained twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from filmroll.errors import EngineUnavailableError
from filmroll.render import Renderer
from filmroll.run.members import switchboard
from filmroll.run.members.switchboard import Connect, Switchboard
from filmroll.run.processes.health import free_port
from filmroll.wire.generate import SamplingParams
from tests.conftest import Served
from tests.run.test_train import EXAMPLE, command, rows

pytestmark = pytest.mark.timeout(600)

PROMPTS, GROUP, TURNS = 8, 8, 3
TOGETHER = PROMPTS * GROUP
STEPS = 3
FLAGS = [
    "--environment.size", "32", "--warmup.steps", "2", "--warmup.batch_size", "8", "--rl.steps", str(STEPS),
    "--rl.prompts", str(PROMPTS), "--rl.rollouts_per_prompt", str(GROUP), "--rl.ahead", "0",
    "--sampling.max_tokens", "6", "--run.record_every", "1", "--run.control", "",
]  # fmt: skip
"""Not one step ahead: so it is known which weights each token must come from."""


@contextmanager
def training(directory: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    run = subprocess.Popen(
        command("train", str(EXAMPLE), "--run.directory", str(directory), *FLAGS, *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield run
    finally:
        run.kill()
        run.communicate()


def until(there: Callable[[], bool], run: subprocess.Popen[str], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def announced(directory: Path, engine: str) -> dict[str, Any]:
    process: dict[str, Any] = json.loads((directory / "processes" / f"{engine}.json").read_text())
    return process


def requests(url: str) -> int:
    """How many requests an engine has been sent so far."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:  # noqa: S310 - our own server
        lines = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[:1] != "#")
    return int(float(lines["filmroll_engine_requests_total"]))


def steps(directory: Path) -> int:
    return len(rows(directory, "rl")) if (directory / "metrics.jsonl").exists() else 0


def kill_within_rollouts(directory: Path, run: subprocess.Popen[str], engine: str, done: int, share: int = 1) -> bool:
    """kill -9 once so many steps are done, and of the next one's rollouts all have begun and none has ended.

    Whether it was seen in time: on a busy machine they may have ended already, and nothing would be shown.
    """
    until(lambda: steps(directory) >= done, run)
    done = steps(directory)
    process = announced(directory, engine)
    before = requests(process["endpoint"])
    turn = TOGETHER // share
    until(lambda: requests(process["endpoint"]) >= before + turn, run)
    if requests(process["endpoint"]) - before >= TURNS * turn or steps(directory) > done:
        return False
    os.kill(process["pid"], signal.SIGKILL)
    return True


def events(directory: Path, kind: str) -> list[dict[str, Any]]:
    every = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    return [event for event in every if event["kind"] == kind]


def check_nothing_is_lost_or_trained_twice(directory: Path, number: int) -> None:
    """Each of so many steps has all of its rollouts, trained once, by the weights that were the newest."""
    trained = rows(directory, "rl")[:number]
    assert [row["step"] for row in trained] == list(range(number))
    names: list[str] = []
    for step, row in enumerate(trained):
        assert (row["rollouts"], row["rollouts_failed"]) == (TOGETHER, 0)
        assert set(row["engine_receipt"].values()) == {row["images"]}
        records = [json.loads(line) for line in (directory / "rollouts" / f"step_{step:06d}.jsonl").open()]
        answers = [turn for record in records for turn in record["turns"] if turn["role"] == "answer"]
        assert row["trained_tokens"] == sum(len(answer["token_ids"]) for answer in answers)
        assert {answer["version"] for answer in answers} == {step}
        # The trainer, which has these very weights, gives the sampled tokens the same probabilities.
        assert row["on_policy"] == 1.0
        assert row["logprob_gap_max"] < 1e-3
        assert {record["step"] for record in records} == {step}
        names += [record["name"] for record in records]
    expected = {
        f"rl_{step}/prompt_{prompt}/rollout_{place}"
        for step in range(number)
        for prompt in range(PROMPTS)
        for place in range(GROUP)
    }
    assert len(names) == len(expected)
    assert set(names) == expected


@pytest.mark.faults
def test_an_engine_killed_twice_within_rollouts_costs_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with training(directory) as run:
        assert kill_within_rollouts(directory, run, "engine", 1)
        assert kill_within_rollouts(directory, run, "engine", 2)
        output, complaint = run.communicate(timeout=300)
    assert run.returncode == 0, output + complaint
    check_nothing_is_lost_or_trained_twice(directory, STEPS)
    assert [row["engine_restarts"] for row in rows(directory, "rl")] == [0, 1, 1]
    assert [event["engine"] for event in events(directory, "engine_died")] == ["engine", "engine"]
    assert [event["version"] for event in events(directory, "engine_restarted")] == [1, 2]
    assert "engine restarts" in (directory / "report.html").read_text()
    assert not psutil.pid_exists(announced(directory, "engine")["pid"])


def test_of_two_engines_the_other_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    chosen = ["--engine.replicas", "2", "--rl.steps", "200", "--model", str(tiny_model)]
    with training(directory, *chosen) as run:
        assert any(kill_within_rollouts(directory, run, "engine-1", done, share=4) for done in range(1, 20))
        until(lambda: bool(events(directory, "engine_restarted")), run)
        engines = [announced(directory, name) for name in ("engine-0", "engine-1")]
        assert requests(engines[0]["endpoint"]) > 0
        until(lambda: requests(engines[1]["endpoint"]) > 0, run)
        seeds = [psutil.Process(engine["pid"]).cmdline()[-1] for engine in engines]
        assert seeds == ["0", "2"], "engines with one seed would sample the same"
        now = steps(directory)
        until(lambda: steps(directory) == now + 2, run)
    trained = rows(directory, "rl")
    assert sum(row["engine_restarts"] for row in trained) == 1
    assert {"engine-0", "engine-1"} < set(trained[-1]["memory"])
    check_nothing_is_lost_or_trained_twice(directory, now + 1)


@pytest.mark.faults
def test_a_run_ends_with_the_last_words_of_an_engine_that_dies_too_often(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with training(directory, "--engine.restarts", "1") as run:
        assert kill_within_rollouts(directory, run, "engine", 1)
        until(lambda: len(events(directory, "engine_restarted")) == 1, run)
        os.kill(announced(directory, "engine")["pid"], signal.SIGKILL)
        _, complaint = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "process engine ended with status -9, 2 times within 10 minutes" in complaint
    assert "it last said" in complaint
    assert "--resume" in complaint
    assert "Traceback" not in complaint


# What a worker asks


def asked(renderer: Renderer) -> Any:
    prompt = renderer.render([{"role": "user", "content": "Hello"}])
    return prompt, SamplingParams(max_tokens=2)


def nobody() -> str:
    """Where no engine is."""
    return f"http://127.0.0.1:{free_port()}"


def test_what_an_engine_was_lost_for_is_answered_by_the_next(served: Served, renderer: Renderer) -> None:
    asyncio.run(_lost_and_answered(served, renderer))


async def _lost_and_answered(served: Served, renderer: Renderer) -> None:
    desk = Switchboard("tiny")
    await desk.connect(Connect([nobody()]))
    answer = asyncio.create_task(desk.generate(*asked(renderer), request_id="a"))
    await asyncio.sleep(0.1)
    await desk.connect(Connect([], missing=1))
    later = asyncio.create_task(desk.generate(*asked(renderer), request_id="b"))
    await asyncio.sleep(2)
    assert not answer.done()
    assert not later.done()
    await desk.connect(Connect([served.url]))
    for done in await asyncio.gather(answer, later):
        assert len(done.token_ids) == 2
    await desk.connect(Connect([]))


def test_an_engine_that_is_there_and_fails_is_an_error(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switchboard, "NOTICE_S", 0.1)
    asyncio.run(_refused(renderer))


async def _refused(renderer: Renderer) -> None:
    desk = Switchboard("tiny")
    await desk.connect(Connect([nobody()]))
    with pytest.raises(EngineUnavailableError):
        await desk.generate(*asked(renderer), request_id="a")
    await desk.connect(Connect([]))
