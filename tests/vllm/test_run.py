"""A run whose engine is vLLM, killed in the middle of rollouts: its server, and later its engine core alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.run.test_engines import TOGETHER, check_nothing_is_lost_or_trained_twice
from tests.run.test_train import command, rows
from tests.vllm.environment import ROOT
from tests.vllm.serving import ENVIRONMENT, PYTHON

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

EXAMPLE = ROOT / "examples" / "color_codeword_vllm.toml"
STEPS = 3
FLAGS = [
    "--engine.command", str(PYTHON.with_name("vllm")), "--environment.size", "32", "--warmup.steps", "2",
    "--warmup.batch_size", "8", "--rl.steps", str(STEPS), "--rl.ahead", "0", "--sampling.max_tokens", "6",
    "--run.record_every", "1", "--run.control", "",
]  # fmt: skip


def test_killed_twice_within_rollouts_it_loses_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    run = subprocess.Popen(
        command("train", str(EXAMPLE), "--run.directory", str(directory), *FLAGS),
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        server = kill_within_rollouts(directory, run, 1, core=False)
        core = kill_within_rollouts(directory, run, 2, core=True)
        output, _ = run.communicate(timeout=1200)
    finally:
        run.kill()
        run.communicate()
    assert run.returncode == 0, output
    trained = rows(directory, "rl")
    assert [row["engine_restarts"] for row in trained] == [0, 1, 1]
    check_nothing_is_lost_or_trained_twice(directory, STEPS)
    assert not any(map(psutil.pid_exists, (*server, *core)))


def kill_within_rollouts(directory: Path, run: subprocess.Popen[str], done: int, *, core: bool) -> list[int]:
    """kill -9 of the server, or of the process in which the model is, while it answers; all processes that it had."""
    until(lambda: (directory / "metrics.jsonl").exists() and len(rows(directory, "rl")) == done, run)
    announced: dict[str, Any] = json.loads((directory / "processes" / "engine.json").read_text())
    log = directory / "logs" / "engine.log"
    before = answered(log)
    until(lambda: answered(log) > before + TOGETHER // 2, run)
    assert len(rows(directory, "rl")) == done
    server = psutil.Process(announced["pid"])
    children = server.children(recursive=True)
    os.kill(next(one.pid for one in children if "EngineCore" in name_of(one)) if core else server.pid, signal.SIGKILL)
    return [server.pid, *(one.pid for one in children)]


def answered(log: Path) -> int:
    """How many requests vLLM has answered, by its own log."""
    return log.read_text(errors="replace").count("POST /inference/v1/generate")


def name_of(process: psutil.Process) -> str:
    """vLLM gives its processes titles."""
    return f"{process.name()} {' '.join(process.cmdline())}"


def until(there: Callable[[], bool], run: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 900
    while not there():
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
