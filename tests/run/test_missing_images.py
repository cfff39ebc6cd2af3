"""Images deleted between rollout and training, in whole runs: an error at once, or steps that go on and say so.

They are runs of an environment of the user's own, found beside the configuration.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Each rollout has a picture of its own; every fourth is gone from the store once the rollout is over.
ENVIRONMENT = """
import itertools
from pathlib import Path
import numpy as np
from filmroll.rollout import Environment, Episode, Score
from filmroll.store import open_store

class Forgetful(Environment):
    def __init__(self, store, every):
        self.store, self.every, self.numbers = open_store(store), every, itertools.count()
    def episode(self, seed):
        return Visit(self, next(self.numbers))

class Visit(Episode):
    def __init__(self, home, number):
        self.home, self.number, self.answers = home, number, 0
        self.picture = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
    async def begin(self):
        return [{"role": "user", "content": [{"type": "image", "image": self.picture}]}]
    async def reply(self, answer):
        self.answers += 1
        return [{"role": "user", "content": "again"}] if self.answers < 2 else []
    def score(self):
        if self.number % self.home.every == self.home.every - 1:
            Path(self.home.store.put(self.picture).uri.removeprefix("file://")).unlink()
        return Score(float(self.number % 3), {"answers": float(self.answers)}, "", "")
"""
STEPS, ROLLOUTS, EVERY = 2, 8, 4


def train(tmp_path: Path, model: Path, *flags: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    (tmp_path / "forgetful.py").write_text(ENVIRONMENT)
    (tmp_path / "run.toml").write_text(f"""
        model = "{model}"
        [run]
        directory = "run"
        [environment]
        name = "custom"
        import_path = "forgetful:Forgetful"
        arguments = {{ store = "{tmp_path / "images"}", every = {EVERY} }}
        [multimodal]
        store = "{tmp_path / "images"}"
        [rl]
        steps = {STEPS}
        prompts = 2
        rollouts_per_prompt = {ROLLOUTS // 2}
        [sampling]
        max_tokens = 4
        [trainer]
        threads = 1
    """)
    command = [sys.executable, "-m", "filmroll", "train", "run.toml", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=250, check=False)
    return done, tmp_path / "run"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("mode", ["raw", "processed"])
def test_a_run_goes_on_and_accounts_for_each(tiny_model: Path, tmp_path: Path, mode: str) -> None:
    done, run = train(tmp_path, tiny_model, "--multimodal.missing_image", "zero_loss", "--multimodal.mode", mode)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = lines(run / "metrics.jsonl")
    assert len(rows) == STEPS
    gone = STEPS * ROLLOUTS // EVERY
    for row in rows:
        assert row["metrics"]["answers"] == 2
        receipt = row["trainer_receipt"]
        assert receipt["referenced"] == receipt["consumed"] == ROLLOUTS
        assert receipt["verified"] == receipt["decoded"] == ROLLOUTS - row["images_missing"]
        assert receipt.get("missing", 0) == row["images_missing"] == row["samples_masked"]
        assert 0 <= row["image_wait"] < row["seconds"]["train"]
    # Rollouts of a step need not end in the order of their numbers, but all of them are in some step.
    assert sum(row["samples_masked"] for row in rows) == gone
    events = [event for event in lines(run / "events.jsonl") if event["kind"] == "image_missing"]
    assert len({event["sample"] for event in events}) == len({event["sha256"] for event in events}) == gone
    for event in events:
        assert event["sample"].endswith("/branch_0")
        assert (event["turn"], event["image"]) == (0, 0)
        assert event["reason"] == f"the store holds no image {event['sha256']}"
    report = (run / "report.html").read_text()
    assert f"{gone} samples without loss" in report
    assert "all equal, with those missing" in report


@pytest.mark.parametrize(
    ("flags", "code", "complaint"),
    [
        ([], 2, r"image 0: sample rl_0/prompt_\d/rollout_\d/branch_0, turn 0: the store holds no image"),
        (
            ["--multimodal.missing_image", "zero_loss", "--multimodal.missing_share", "0.1"],
            1,
            "of 8 samples of the step show images that cannot be had",
        ),
    ],
    ids=["error", "too many"],
)
def test_a_run_ends_at_once(tiny_model: Path, tmp_path: Path, flags: list[str], code: int, complaint: str) -> None:
    done, run = train(tmp_path, tiny_model, *flags)
    assert done.returncode == code, done.stderr
    assert re.search(complaint, done.stderr)
    assert "Traceback" not in done.stderr
    assert not (run / "metrics.jsonl").exists()
    last = lines(run / "events.jsonl")[-1]
    assert last["kind"] == "failed"
    assert re.search(complaint, last["error"])
