"""Runs as jobs of a real SLURM over two hosts that share only files: to their end, cancelled, requeued, bereft."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.run import test_sft
from tests.run.test_train import EXAMPLE, SMALL, command, rows, wait_until
from tests.slurm.cluster import NETWORK, Slurm, started_slurm

pytestmark = pytest.mark.slurm
PATIENCE_S = 400


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    subprocess.run(command("tiny-model", str(folder)), check=True, capture_output=True, timeout=200)
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with started_slurm(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm


@pytest.fixture
def slurm(cluster):
    """The cluster, with nothing on it afterwards, whatever the test has found."""
    yield cluster
    cluster.run("scancel", "--user=root", "--full")
    wait_until(lambda: not cluster.run("squeue", "--noheader"), 100)


class Job:
    """A run that was submitted, and what is known of it."""

    file = EXAMPLE
    flags = (*SMALL, "--warmup.steps", "2", "--engine.replicas", "2")

    def __init__(self, slurm: Slurm, folder: Path, model: Path, *flags: str) -> None:
        self.slurm, self.folder = slurm, folder
        told = slurm.run(
            *command("slurm", str(self.file), "--run", str(folder), "--model", str(model), *self.flags),
            *("--cluster.network", NETWORK, "--cluster.silence_s", "20"),
            *("--slurm.nodes", "2", "--slurm.gpus_per_node", "2", *flags),
        )
        self.number = re.search(r"^job (\d+);", told, re.MULTILINE)[1]

    def steps(self):
        return len(rows(self.folder)) if (self.folder / "metrics.jsonl").exists() else 0

    def events(self, kind):
        file = self.folder / "events.jsonl"
        every = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [event for event in every if event["kind"] == kind]

    def log(self):
        return "".join(path.read_text() for path in sorted(self.folder.glob("logs/slurm-*.log")))

    def until(self, there):
        """Wait for it, and fail with what was said if the job ends before."""

        def there_or_over():
            return there() or self.slurm.state(self.number) in ("FAILED", "COMPLETED", "CANCELLED")

        wait_until(there_or_over, PATIENCE_S)
        assert there(), self.log()[-4000:]

    def ended(self):
        wait_until(
            lambda: self.slurm.state(self.number) not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"), PATIENCE_S
        )
        wait_until(lambda: not self.processes(), 60)
        return self.slurm.state(self.number)

    def start_again(self):
        """Once it waits in the queue again, and its nodes have forgotten that it was there."""
        wait_until(lambda: self.slurm.state(self.number) == "PENDING" and not self.processes(), 100)
        time.sleep(3)
        self.slurm.start_now(self.number)

    def processes(self):
        """Whatever still runs for this run, on either host."""
        found = []
        for one in psutil.process_iter(["cmdline"]):
            line = " ".join(one.info["cmdline"] or ())
            if str(self.folder) in line:
                found.append(line)
        return found

    def process(self, *words):
        """The one process whose command line has these words in it."""
        (found,) = (one for one in psutil.process_iter(["cmdline"]) if self._is(one.info["cmdline"] or (), words))
        return found

    def rank(self, number):
        """The environment of that rank of the trainer."""
        roles = [one for one in psutil.process_iter(["cmdline"]) if self._is(one.info["cmdline"] or (), ["trainer"])]
        (found,) = (told for told in (one.environ() for one in roles) if told.get("RANK") == str(number))
        return found

    def _is(self, line, words):
        return line[1:3] == ["-m", "filmroll"] and set(words) <= set(line) and str(self.folder) in line

    def whole(self, steps):
        """Every step has one row that counts, and the newest checkpoint holds all of them."""
        done = {(row["phase"], row["step"]) for row in rows(self.folder)}
        assert done == {*(("warmup", step) for step in range(2)), *(("rl", step) for step in range(steps))}
        last = self.events("checkpoint")[-1]
        assert (last["warmup"], last["rl"]) == (2, steps)
        assert self.events("finished")


class SupervisedJob(Job):
    file = test_sft.EXAMPLE
    flags = ("--sft.batch_size", "8", "--trainer.ranks", "2", "--trainer.nodes", "2")


def test_a_run_over_two_hosts_comes_to_its_end(slurm, tmp_path, model):
    job = Job(slurm, tmp_path / "run", model, "--rl.steps", "6", "--trainer.ranks", "2")
    job.until(lambda: len(job.events("joined")) == 4)
    for name in ("engine-0", "engine-1", "trainer", "worker"):
        assert job.process("role", name).environ()["CUDA_VISIBLE_DEVICES"] == "", "they are on CPUs"
    assert job.ended() == "COMPLETED", job.log()[-4000:]
    job.whole(6)
    assert [row["version"] for row in rows(job.folder, "rl")] == [1, 2, 3, 4, 5, 6]
    hosts = {event["process"]: event["host"].partition(",")[0] for event in job.events("joined")}
    assert hosts == {"trainer": "n1", "worker": "n1", "engine-0": "n2", "engine-1": "n2"}
    assert "mean reward over the last" in job.log()


SHOWING = """\
#!/bin/bash
seen=$(dirname "$0")/seen
if [ "$3" = orchestrator ]; then
    until [ "$(ls "$seen" | wc -l)" -eq 5 ]; do sleep 0.2; done
    exit
fi
name=$3
[ "$4" = --name ] && name=$5
printf '%s %s' "$SLURMD_NODENAME" "$CUDA_VISIBLE_DEVICES" >"$seen/$name"
"""
"""In filmroll's place: each process but the orchestrator says what it sees, and ends."""


def test_each_process_sees_the_gpus_of_its_node_that_it_was_dealt(slurm, tmp_path, model):
    """The nodes have files for GPUs, and no GPUs."""
    folder, showing, seen = tmp_path / "run", tmp_path / "showing", tmp_path / "seen"
    seen.mkdir()
    showing.write_text(SHOWING)
    showing.chmod(0o755)
    slurm.run(
        *command("slurm", str(EXAMPLE), "--run", str(folder), "--model", str(model), "--dry-run"),
        *("--cluster.network", NETWORK, "--slurm.nodes", "2", "--slurm.gpus_per_node", "2"),
        *("--trainer.device", "cuda", "--trainer.ranks", "2", "--trainer.nodes", "2"),
        *("--engine.device", "cuda", "--engine.replicas", "2"),
    )
    script = folder / "job.sh"
    script.write_text(re.sub(r"^PYTHON=.*$", f"PYTHON={showing}", script.read_text(), flags=re.MULTILINE))
    number = slurm.run("sbatch", "--parsable", str(script)).strip()
    wait_until(lambda: slurm.state(number) == "COMPLETED", PATIENCE_S)
    assert {one.name: one.read_text() for one in seen.iterdir()} == {
        "trainer-0": "n1 0",
        "trainer-1": "n2 0",
        "engine-0": "n1 1",
        "engine-1": "n2 1",
        "worker": "n1 ",
    }


def test_a_trainer_with_a_rank_on_either_host_comes_to_its_end(slurm, tmp_path, model):
    job = Job(slurm, tmp_path / "run", model, "--rl.steps", "12", "--trainer.ranks", "2", "--trainer.nodes", "2")
    job.until(lambda: len(job.events("joined")) == 5)
    job.until(lambda: job.steps() >= 1)
    for rank in (0, 1):
        told = job.rank(rank)
        assert (told["LOCAL_RANK"], told["GLOO_SOCKET_IFNAME"]) == ("0", "eth0")
        assert told["MASTER_ADDR"] == "10.77.0.11"
    assert job.ended() == "COMPLETED", job.log()[-4000:]
    job.whole(12)
    hosts = {event["process"]: event["host"].partition(",")[0] for event in job.events("joined")}
    assert hosts == {"trainer-0": "n1", "trainer-1": "n2", "worker": "n1", "engine-0": "n1", "engine-1": "n2"}
    assert len(list(max((job.folder / "checkpoints").iterdir()).glob("*.safetensors"))) == 2


def test_what_is_cancelled_leaves_no_process_and_can_go_on(slurm, tmp_path, model):
    job = Job(slurm, tmp_path / "run", model, "--rl.steps", "100000")
    job.until(lambda: job.steps() >= 4)
    assert len(job.processes()) > 5
    slurm.run("scancel", job.number)
    assert job.ended() == "CANCELLED"
    assert "Traceback" not in job.log()
    assert job.events("stopped")


def test_requeued_in_the_middle_it_goes_on_and_finishes(slurm, tmp_path, model):
    job = Job(slurm, tmp_path / "run", model, "--rl.steps", "16")
    job.until(lambda: job.steps() >= 6)
    slurm.run("scontrol", "requeue", job.number)
    job.start_again()
    assert job.ended() == "COMPLETED", job.log()[-4000:]
    job.whole(16)
    assert len(job.events("resumed")) == 1
    # What was trained again is what came after the checkpoint: never more than the two steps between two of those.
    again = Counter((row["phase"], row["step"]) for row in rows(job.folder))
    assert sum(again.values()) - len(again) <= 2


def test_told_of_the_time_limit_it_stops_at_a_checkpoint_and_trains_every_step_once(slurm, tmp_path, model):
    job = Job(slurm, tmp_path / "run", model, "--rl.steps", "16", "--run.checkpoint_every", "1000")
    job.until(lambda: job.steps() >= 6)
    # As SLURM does at `--signal=B:USR1@...`, whose clock is too coarse for a test.
    slurm.run("scancel", "--batch", "--signal=USR1", job.number)
    job.start_again()
    assert job.events("stopped")
    assert job.ended() == "COMPLETED", job.log()[-4000:]
    job.whole(16)
    assert set(Counter((row["phase"], row["step"]) for row in rows(job.folder)).values()) == {1}
    assert "stopped at a checkpoint" in job.log()


def test_a_step_that_is_killed_is_started_again(slurm, tmp_path, model):
    job = Job(slurm, tmp_path / "run", model, "--rl.steps", "100000")
    job.until(lambda: job.steps() >= 4)
    os.kill(job.process("--run", "engine-1").pid, signal.SIGKILL)
    job.until(lambda: job.events("engine_restarted"))
    died = [event["engine"] for event in job.events("engine_died")]
    assert died == ["engine-1"]
    assert "step engine-1 on n2 ended with status" in job.log()
    done = job.steps()
    job.until(lambda: job.steps() > done + 1)
    slurm.run("scancel", job.number)
    assert job.ended() == "CANCELLED"


def test_a_host_that_dies_puts_the_job_back_into_the_queue(slurm, tmp_path, model):
    job = Job(slurm, tmp_path / "run", model, "--rl.steps", "12")
    job.until(lambda: job.steps() >= 4)
    slurm.daemon("n2").kill()
    for process in list(psutil.process_iter(["cmdline"])):
        line = " ".join(process.info["cmdline"] or ())
        if str(job.folder) in line and "engine" in line:
            process.kill()
    slurm.run("scontrol", "update", "nodename=n2", "state=down", "reason=dead")
    try:
        wait_until(lambda: slurm.state(job.number) == "PENDING", 100)
    finally:
        slurm.start_daemon("n2")
        time.sleep(1)
        slurm.run("scontrol", "update", "nodename=n2", "state=resume", check=False)
    job.start_again()
    assert job.ended() == "COMPLETED", job.log()[-4000:]
    job.whole(12)


def test_supervised_training_on_two_hosts_is_told_of_the_time_limit_and_comes_to_its_end(slurm, tmp_path, model):
    data = test_sft.make(tmp_path / "data", 32)
    paths = ("--data.path", str(data / "train.jsonl"), "--data.held_out_path", str(data / "held_out.jsonl"))
    job = SupervisedJob(slurm, tmp_path / "run", model, *paths, "--sft.epochs", "8")
    job.until(lambda: job.steps() >= 2)
    slurm.run("scancel", "--batch", "--signal=USR1", job.number)
    job.start_again()
    assert job.events("stopped")
    assert job.ended() == "COMPLETED", job.log()[-4000:]
    assert [row["step"] for row in rows(job.folder)] == list(range(32))
    assert {event["process"] for event in job.events("joined")} == {"trainer-0", "trainer-1"}
    assert {event["host"].partition(",")[0] for event in job.events("joined")} == {"n1", "n2"}
    assert (job.folder / "trained" / "config.json").is_file()
    assert "loss on held-out rows" in job.log()
