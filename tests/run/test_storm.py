"""A run in a storm: its processes are killed again and again, its images deleted, and all of it is accounted for."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.run.test_engines import GROUP, PROMPTS, TOGETHER, announced, events, steps, training, until
from tests.run.test_train import rows
from tests.store.effort import effort

pytestmark = [pytest.mark.faults, pytest.mark.reliability, pytest.mark.timeout(3600)]

STEPS = effort(6, 200)
CALM = effort(2, 10)
"""Steps between two kills."""
GONE = 0.01
"""The share of images that are deleted, some before an engine has seen them and some after."""


@contextmanager
def deleting(images: Path, draw: random.Random) -> Iterator[Counter[str]]:
    """Images that come into being are drawn for deletion, a moment later."""
    ended = threading.Event()
    count: Counter[str] = Counter()

    def work() -> None:
        known: set[Path] = set()
        doomed: list[tuple[float, Path]] = []
        while not ended.wait(0.02):
            there = {path for path in images.rglob("*.png") if path not in known} if images.exists() else set()
            known |= there
            drawn = [path for path in sorted(there) if draw.random() < GONE]
            doomed += [(time.monotonic() + draw.random(), path) for path in drawn]
            for due, path in [one for one in doomed if one[0] < time.monotonic()]:
                doomed.remove((due, path))
                path.unlink(missing_ok=True)
                count["deleted"] += 1
        count["seen"] = len(known)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield count
    finally:
        ended.set()
        thread.join()


def test_every_rollout_is_trained_once_or_is_said_to_be_left_out(tmp_path: Path) -> None:
    directory, draw = tmp_path / "run", random.Random(0)
    flags = ["--multimodal.missing_image", "zero_loss", "--run.restarts", "1000", "--engine.restarts", "1000"]
    flags += ["--rl.steps", str(STEPS), "--run.checkpoint_every", "7"]
    victims = itertools.cycle(["trainer", "worker", "engine"])
    with training(directory, *flags) as run, deleting(directory / "assets" / "images", draw) as count:
        for step in range(CALM, STEPS, CALM):
            until(lambda step=step: steps(directory) >= step, run, 1200)
            time.sleep(draw.uniform(0, 3))
            victim = next(victims)
            until(lambda victim=victim: (directory / "processes" / f"{victim}.json").exists(), run)
            try:
                os.kill(announced(directory, victim)["pid"], signal.SIGKILL)
            except ProcessLookupError:
                continue
            count[victim] += 1
        assert run.wait(1200) == 0, run.communicate()
    trained = rows(directory, "rl")
    assert [row["step"] for row in trained] == list(range(STEPS))
    for victim in ("trainer", "worker", "engine"):
        assert len(events(directory, f"{victim}_died")) == count[victim]
    for row in trained:
        failed = [event for event in events(directory, "rollout_failed") if event["step"] == row["step"]]
        assert row["rollouts_failed"] == len(failed)
        assert row["rollouts"] % GROUP == 0
        left_out = PROMPTS - row["rollouts"] // GROUP
        assert (left_out == 0) == (not failed)
        assert left_out <= len(failed)
        receipt = row["trainer_receipt"]
        assert receipt["referenced"] == receipt["verified"] + receipt.get("missing", 0) == receipt["consumed"]
        # Whatever was killed before: the trainer's policy is the one that the engine sampled with, unless an image was
        # there or not when a step that shows it was learnt again, and that is said.
        assert row["on_policy"] == 1.0
        changed = [event for event in events(directory, "learnt_otherwise") if event["time"] < row["time"]]
        assert row["logprob_gap_max"] < (0.5 if changed else 1e-3)
    missing, every = events(directory, "image_missing"), [*rows(directory, "warmup"), *trained]
    assert len(missing) == sum(row["images_missing"] for row in every)
    assert len({event["sample"] for event in missing}) == sum(row["samples_masked"] for row in every)
    affected = len(missing) + len(events(directory, "rollout_failed"))
    print(f"{STEPS} steps of {TOGETHER} rollouts, {dict(count)}: {affected} rollouts or images said to be left out")
    assert sum(row["restarts"] + row["engine_restarts"] for row in trained) == sum(
        count[victim] for victim in ("trainer", "worker", "engine")
    )
