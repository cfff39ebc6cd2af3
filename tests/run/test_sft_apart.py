"""Supervised training whose trainer comes by itself, as on another machine: told to end, and gone on with."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from filmroll.families.tiny import build_tiny_model
from tests.run.test_sft import EXAMPLE, events, make, rows
from tests.run.test_train import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
STEPS = 12


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts the process of a role, as a person would; whatever is left of them is ended."""
    model, data = build_tiny_model(tmp_path / "model"), make(tmp_path / "data", 32)
    words = [EXAMPLE, "--run", tmp_path / "run", "--model", model, "--data.path", data / "train.jsonl"]
    words += ["--data.held_out_path", data / "held_out.jsonl", "--sft.batch_size", 8, "--sft.epochs", 3]
    words += ["--run.checkpoint_every", 100, "--cluster.patience_s", 600, "--cluster.silence_s", 60]
    processes: list[subprocess.Popen[str]] = []

    def begin(role: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "filmroll", role, *map(str, words)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return processes[-1]

    yield begin
    for one in processes:
        one.terminate()
        one.communicate(timeout=100)


def said(process: subprocess.Popen[str], status: int) -> str:
    text, _ = process.communicate(timeout=800)
    assert process.returncode == status, text
    return text


def test_it_ends_with_the_orchestrator_and_goes_on_with_it(
    tmp_path: Path, start: Callable[[str], subprocess.Popen[str]]
) -> None:
    directory = tmp_path / "run"
    trainer, orchestrator = start("trainer"), start("orchestrator")
    wait_until(lambda: (directory / "metrics.jsonl").exists() and rows(directory), 800)
    orchestrator.send_signal(signal.SIGUSR1)
    done = said(orchestrator, 75)
    assert f"stopped at a checkpoint; `filmroll orchestrator --run {directory}` goes on" in done
    assert "the run has ended" in said(trainer, 0)
    assert len(rows(directory)) < STEPS

    trainer, orchestrator = start("trainer"), start("orchestrator")
    assert "loss on held-out rows" in said(orchestrator, 0)
    assert "the run has ended" in said(trainer, 0)
    assert [row["step"] for row in rows(directory)] == list(range(STEPS))
    kinds = [event["kind"] for event in events(directory)]
    assert [kinds.count(kind) for kind in ("started", "resumed", "stopped", "finished")] == [1, 1, 1, 1]
    assert {event["process"] for event in events(directory) if event["kind"] == "joined"} == {"trainer"}
    assert (directory / "trained" / "config.json").is_file()
