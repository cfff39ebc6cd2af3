"""A whole demo in which each process is killed, then all at once, and which is told to end. `make demo-tests`."""

import json
import os
import random
import signal
import subprocess
import time
from contextlib import contextmanager

import psutil
import pytest
from safetensors.torch import load_file

from filmroll.run.config import load_config
from tests.demo.test_demo import EXAMPLE, check_it_has_learnt, command
from tests.run.test_engines import announced, events
from tests.run.test_train import rows, steps_done

pytestmark = [pytest.mark.demo, pytest.mark.timeout(3600)]

VICTIMS = {25: "engine", 55: "trainer", 75: "worker"}
"""Which of them is killed after so many steps. The last checkpoint is always some steps back."""
ALL_KILLED, TOLD_TO_END = 105, 125
OVER_FILES = ("--transport.kind", "files", "--run.record_every", "1")
"""A step that is noted is not played again when the run is resumed, and all that was played is written down."""


@contextmanager
def running(*arguments):
    with subprocess.Popen(command(*arguments)) as run:
        try:
            yield run
        finally:
            run.terminate()


def reach(run, directory, step):
    """Wait until so many steps are done, and a little more: anything may be going on in a step."""
    while steps_done(directory, "rl") < step:
        assert run.poll() is None
        time.sleep(0.5)
    time.sleep(random.Random(step).uniform(0, 1.5))


def kill_all(run):
    """The orchestrator and whatever it has started, none of which learns of another's death."""
    orchestrator = psutil.Process(run.pid)
    for process in [orchestrator, *orchestrator.children(recursive=True)]:
        process.kill()


def updates(directory):
    """How many updates the optimizer itself has counted in the newest checkpoint, for each parameter."""
    counted = set()
    for shard in max((directory / "checkpoints").iterdir()).glob("*.safetensors"):
        counted |= {int(tensor) for name, tensor in load_file(shard).items() if name.startswith("optimizer/step/")}
    return counted


def test_every_kind_of_kill_in_one_run_costs_nothing(tmp_path):
    directory, began = tmp_path / "run", time.monotonic()
    with running("train", EXAMPLE, *OVER_FILES, "--run.directory", directory) as first:
        for step, victim in VICTIMS.items():
            reach(first, directory, step)
            os.kill(announced(directory, victim)["pid"], signal.SIGKILL)
        reach(first, directory, ALL_KILLED)
        kill_all(first)
    with running("train", "--resume", directory) as second:
        reach(second, directory, TOLD_TO_END)
        second.send_signal(signal.SIGTERM)
        assert second.wait() == 128 + signal.SIGTERM
    with running("train", "--resume", directory) as last:
        assert last.wait() == 0

    for victim in VICTIMS.values():
        assert len(events(directory, f"{victim}_died")) == len(events(directory, f"{victim}_restarted")) == 1
    assert events(directory, "trainer_restarted")[0]["learnt_again"] > 0
    assert len(events(directory, "resumed")) == 2
    assert len(events(directory, "caught_up")) > 5
    (stopped,) = events(directory, "stopped")
    assert "SIGTERM" in stopped["reason"]
    assert len(events(directory, "finished")) == 1
    check_that_every_step_is_there_once(directory)
    check_it_has_learnt(directory, began, "killed in every way")


def check_that_every_step_is_there_once(directory):
    """Each has all of its rollouts, which are those that were trained; and the policy has had as many updates."""
    config = load_config(EXAMPLE)
    warmup, rl = rows(directory, "warmup"), rows(directory, "rl")
    assert [row["step"] for row in warmup] == list(range(config.warmup.steps))
    assert [row["step"] for row in rl] == list(range(config.rl.steps))
    assert updates(directory) == {config.warmup.steps + config.rl.steps}
    for row in rl:
        step = row["step"]
        records = [json.loads(line) for line in (directory / "rollouts" / f"step_{step:06d}.jsonl").open()]
        assert {record["name"] for record in records} == {
            f"rl_{step}/prompt_{prompt}/rollout_{place}"
            for prompt in range(config.rl.prompts)
            for place in range(config.rl.rollouts_per_prompt)
        }
        assert len(records) == row["rollouts"] == config.rl.prompts * config.rl.rollouts_per_prompt
        answers = [turn for record in records for turn in record["turns"] if turn["role"] == "answer"]
        assert row["trained_tokens"] == sum(len(answer["token_ids"]) for answer in answers)
        assert {answer["version"] for answer in answers} <= {step, step - config.rl.ahead}
        # What the engine sampled by is the policy that the trainer holds, whatever was killed before.
        assert row["logprob_gap_max"] is None or row["logprob_gap_max"] < 1e-3
