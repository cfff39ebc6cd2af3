"""The demo as a newcomer runs it, on every seed, in more processes, with its control, and killed in the middle.

`make demo-tests`.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time

import pytest

from tests.run.test_train import rows
from tests.vllm.environment import ROOT
from tests.vllm.serving import ENVIRONMENT, PYTHON

pytestmark = [pytest.mark.demo, pytest.mark.timeout(3600)]
EXAMPLE = ROOT / "examples" / "color_codeword.toml"
VLLM = ROOT / "examples" / "color_codeword_vllm.toml"
GOAL = 0.90


def command(*arguments):
    return [sys.executable, "-m", "filmroll", *map(str, arguments)]


def rewards(directory):
    """Each step's reward; a step that was repeated after a resume counts as it was last."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").open()]
    return [
        reward for _, reward in sorted({row["step"]: row["reward"] for row in rows if row["phase"] == "rl"}.items())
    ]


def check_it_has_learnt(directory, began, what):
    seconds, every = time.monotonic() - began, rewards(directory)
    reached = statistics.fmean(every[-10:])
    print(f"{what}: mean reward {reached:.3f} over the last 10 of {len(every)} steps, {seconds:.0f} s")
    assert reached >= GOAL


@pytest.mark.parametrize("seed", range(5))
def test_it_learns_on_every_seed(tmp_path, seed):
    run, began = tmp_path / "run", time.monotonic()
    subprocess.run(command("train", EXAMPLE, "--seed", seed, "--run.directory", run), check=True)
    check_it_has_learnt(run, began, f"seed {seed}")


def test_it_learns_with_two_trainer_processes_and_two_engines(tmp_path):
    run, began = tmp_path / "run", time.monotonic()
    flags = ("--trainer.ranks", 2, "--engine.replicas", 2, "--run.directory", run)
    subprocess.run(command("train", EXAMPLE, *flags), check=True)
    check_it_has_learnt(run, began, "2 ranks, 2 engines")
    trained = rows(run, "rl")
    assert {"engine-0", "engine-1"} < set(trained[-1]["memory"])
    assert len(list(max((run / "checkpoints").iterdir()).glob("shard-*.safetensors"))) == 2
    # The ranks hold one policy, and the engines sample by it.
    assert max(row["logprob_gap_max"] or 0 for row in trained) < 1e-3


def test_it_learns_with_vllm(tmp_path):
    run, vllm, began = tmp_path / "run", PYTHON.with_name("vllm"), time.monotonic()
    flags = ("--engine.command", vllm, "--run.directory", run)
    subprocess.run(command("train", VLLM, *flags), check=True, env=os.environ | ENVIRONMENT)
    check_it_has_learnt(run, began, "vLLM")


def test_blank_pictures_teach_nothing(tmp_path):
    run = tmp_path / "run"
    subprocess.run(command("train", EXAMPLE, "--environment.images", "blank", "--run.directory", run), check=True)
    print(f"control: mean reward {statistics.fmean(rewards(run)):.4f}, highest step {max(rewards(run)):.3f}")
    assert statistics.fmean(rewards(run)[-10:]) < 0.02


def test_a_kill_in_the_middle_costs_nothing(tmp_path):
    run, began = tmp_path / "run", time.monotonic()
    with subprocess.Popen(command("train", EXAMPLE, "--run.directory", run)) as first:
        while not (run / "metrics.jsonl").exists() or len(rewards(run)) < 65:
            assert first.poll() is None
            time.sleep(0.2)
        os.kill(first.pid, signal.SIGKILL)
    subprocess.run(command("train", "--resume", run), check=True)
    check_it_has_learnt(run, began, "killed at step 65 and resumed")
