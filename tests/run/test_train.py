"""Training end to end, in processes of its own, as a user starts it; and killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest

from filmroll.run.directory import RunDirectory
from filmroll.store import Manifest, open_store
from filmroll.store.upkeep.gc import gc
from tests.command_line import filmroll_here

EXAMPLE = Path(__file__).parents[2] / "examples" / "color_codeword.toml"
SMALL = [
    "--environment.size", "32", "--warmup.batch_size", "8", "--rl.prompts", "2", "--rl.rollouts_per_prompt", "4",
    "--sampling.max_tokens", "6", "--run.checkpoint_every", "2", "--run.control", "",
]  # fmt: skip


def command(*arguments):
    return [sys.executable, "-m", "filmroll", *arguments]


def flags(directory, warmup, rl, *more):
    return ["--run.directory", str(directory), "--warmup.steps", str(warmup), "--rl.steps", str(rl), *SMALL, *more]


def train(directory, warmup, rl, *more):
    arguments = ("train", str(EXAMPLE), *flags(directory, warmup, rl, *more))
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=250)


def rows(directory, phase=None):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    every = [json.loads(line) for line in lines]
    return [row for row in every if phase in (None, row["phase"])]


def same_model(finished):
    """The flag by which a run has the model that the finished one has built, and need not build it again."""
    return ["--model", str(finished[0] / "model")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "small"
    done = train(directory, 4, 4)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory, done


def test_it_ends_with_the_reward_and_the_report(finished):
    directory, done = finished
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("mean reward over the last 4 steps: ")
    assert last.endswith(f"report: {directory / 'report.html'}")
    assert "rl 4/4" in done.stdout
    assert "images/s" in done.stdout
    assert done.stderr == ""
    assert "<svg" in (directory / "report.html").read_text()


def test_law_counted_in_every_step(finished):
    directory, _ = finished
    assert [row["step"] for row in rows(directory, "warmup")] == [0, 1, 2, 3]
    assert [row["version"] for row in rows(directory, "rl")] == [1, 2, 3, 4]
    for row in rows(directory):
        assert len(set(row["trainer_receipt"].values())) == 1
    for row in rows(directory, "rl"):
        assert set(row["engine_receipt"].values()) == {row["images"]}
        assert row["trainer_receipt"]["consumed"] > 0
        assert set(row["memory"]) == {"orchestrator", "engine", "trainer", "worker"}
        assert row["pixel_bytes"] > 10 * (row["request_bytes"] + row["sample_bytes"] + row["image_bytes"])


def test_every_image_is_one_file_in_the_runs_store(finished):
    directory, _ = finished
    named = [json.loads(line) for path in (directory / "rollouts").glob("*.jsonl") for line in path.open()]
    digests = {image["sha256"] for one in named for image in one["images"]}
    files = [path for path in (directory / "assets" / "images").rglob("*") if path.is_file()]
    assert digests <= {path.stem for path in files}
    assert len(files) == len({path.stem for path in files})
    for path in directory.rglob("*.json*"):
        assert "pixel_values" not in path.read_text()


def test_every_image_of_a_step_is_in_the_runs_manifest(finished):
    directory, _ = finished
    store = open_store(directory / "assets" / "images")
    manifest = Manifest(store, RunDirectory.open(directory).manifest_name())
    assert manifest.labels() == [f"{phase}_{step:06d}" for phase in ("rl", "warmup") for step in range(4)]
    for path in (directory / "rollouts").glob("*.jsonl"):
        records = [json.loads(line) for line in path.open()]
        shown = {image["sha256"] for one in records for image in one["images"]}
        assert shown == {name[:64] for name in manifest.images(f"rl_{records[0]['step']:06d}")}
    # All that the run has put was for a step: nothing is left for upkeep, however old it is.
    assert gc(store, grace=-1).trashed.count == 0
    manifest.drop("rl_000003")
    assert gc(store, grace=-1).trashed.count > 0


def test_sampled_tokens_carry_their_policy_version(finished):
    directory, _ = finished
    last = max((directory / "rollouts").glob("*.jsonl"))
    answers = [turn for line in last.open() for turn in json.loads(line)["turns"] if turn["role"] == "answer"]
    assert {turn["version"] for turn in answers} <= {2, 3}
    assert all(len(turn["logprobs"]) == len(turn["token_ids"]) for turn in answers)


def test_nothing_is_left_running(finished):
    directory, _ = finished
    for path in (directory / "processes").glob("*.json"):
        assert path.stat().st_mode & 0o077 == 0
        assert not psutil.pid_exists(json.loads(path.read_text())["pid"])


def start(*arguments):
    return subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_until(there, seconds=200):
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def steps_done(directory, phase):
    return len(rows(directory, phase)) if (directory / "metrics.jsonl").exists() else 0


def pids(directory):
    return [json.loads(path.read_text())["pid"] for path in (directory / "processes").glob("*.json")]


def test_a_killed_run_is_resumed_as_if_nothing_had_happened(finished, tmp_path):
    """kill -9 of the orchestrator, once in each phase: its processes end with it, and the run goes on each time."""
    reference, _ = finished
    directory = tmp_path / "killed"
    for phase, begun in (
        ("warmup", ["train", str(EXAMPLE), *flags(directory, 4, 4, *same_model(finished))]),
        ("rl", ["train", "--resume", str(directory)]),
    ):
        run = start(*begun)
        wait_until(lambda phase=phase: steps_done(directory, phase) >= 3)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        children = pids(directory)
        assert len(children) == 3
        wait_until(lambda children=children: not any(psutil.pid_exists(pid) for pid in children), 60)
    manifest = RunDirectory.open(directory).manifest_name()

    done = subprocess.run(command("train", "--resume", str(directory)), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["step"] for row in rows(directory, "rl")} == {0, 1, 2, 3}
    # Warm-up samples nothing, so it must be the very same whether it was interrupted or not.
    again = {row["step"]: row["loss"] for row in rows(directory, "warmup")}
    assert again == pytest.approx({row["step"]: row["loss"] for row in rows(reference, "warmup")}, rel=1e-4)
    events = [json.loads(line)["kind"] for line in (directory / "events.jsonl").open()]
    assert events[-1] == "finished"
    assert events.count("resumed") == 2
    labels = Manifest(open_store(directory / "assets" / "images"), manifest).labels()
    assert labels == [f"{phase}_{step:06d}" for phase in ("rl", "warmup") for step in range(4)]


def check_the_death_ends_the_run(directory, victim, chosen, due):
    """kill -9 of one of its processes, once it is due: the run says which it was, and nothing is left but a report."""
    run = subprocess.Popen(
        command("train", str(EXAMPLE), *chosen), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(due)
    os.kill(json.loads((directory / "processes" / f"{victim}.json").read_text())["pid"], signal.SIGKILL)
    _, complaint = run.communicate(timeout=150)
    assert run.returncode == 1
    assert f"process {victim} ended" in complaint
    assert "--resume" in complaint
    assert "Traceback" not in complaint
    assert (directory / "report.html").exists()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids(directory)), 60)


def test_over_files_a_killed_run_goes_on_from_its_samples(finished, tmp_path):
    """No checkpoint was written yet: what was noted is trained once more, and no episode is played again."""
    reference, _ = finished
    directory = tmp_path / "files"
    over_files = ["--transport.kind", "files", "--transport.window_messages", "8", "--run.checkpoint_every", "100"]
    over_files += ["--run.restarts", "0"]
    chosen = flags(directory, 4, 2, *over_files, *same_model(finished))
    check_the_death_ends_the_run(directory, "trainer", chosen, lambda: steps_done(directory, "warmup") >= 2)
    done = subprocess.run(command("train", "--resume", str(directory)), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr

    assert [row["step"] for row in rows(directory)] == [0, 1, 2, 3, 0, 1]
    again = {row["step"]: row["loss"] for row in rows(directory, "warmup")}
    assert again == pytest.approx({row["step"]: row["loss"] for row in rows(reference, "warmup")}, rel=1e-4)
    events = [json.loads(line) for line in (directory / "events.jsonl").open()]
    assert [event["kind"] for event in events].count("caught_up") >= 2
    # Half of the window is 4 steps. The last checkpoint holds all of it.
    assert [event["warmup"] + event["rl"] for event in events if event["kind"] == "checkpoint"] == [4, 6]
    assert not list((directory / "samples").glob("*.message"))


@pytest.mark.parametrize("victim", ["engine", "worker"])
def test_a_process_that_dies_stops_the_run_with_its_name(finished, tmp_path, victim):
    """So does a trainer: the test before this one."""
    directory = tmp_path / "run"
    no_more = ["--engine.restarts", "0", "--run.restarts", "0", *same_model(finished)]
    check_the_death_ends_the_run(
        directory, victim, flags(directory, 1, 200, *no_more), lambda: steps_done(directory, "rl") >= 1
    )


@pytest.mark.faults
def test_only_pictures_tell_the_letters(finished, tmp_path):
    """The control: what blank pictures teach is the format, and no letter better than chance."""
    partial = {}
    for images in ("colors", "blank"):
        directory = tmp_path / images
        arguments = ["--environment.images", images, "--warmup.batch_size", "16", "--rl.prompts", "8"]
        arguments += same_model(finished)
        done = train(directory, 140, 2, *arguments, "--environment.teacher_accuracy", "1.0")
        assert done.returncode == 0, done.stdout + done.stderr
        partial[images] = sum(row["metrics"]["partial"] for row in rows(directory, "rl")) / 2
        assert images == "colors" or max(row["reward"] for row in rows(directory, "rl")) <= 0.05
    assert partial["blank"] < 0.25
    assert partial["colors"] > partial["blank"] + 0.15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "none.toml"], "none.toml cannot be read"),
        (["train", str(EXAMPLE), "--rl.steps", "x"], "rl.steps"),
        (["train", "--resume", "nowhere"], "not the folder of a run"),
        (["train", "--resume", "{finished}", "--rl.prompts", "77"], "rl.prompts is 2 there and 77 here"),
        (["train", str(EXAMPLE), "--model", "no/such/model", "--run.directory", "{tmp}/m"], "model"),
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(finished, tmp_path, arguments, message):
    arguments = [one.format(tmp=tmp_path, finished=finished[0]) for one in arguments]
    done = filmroll_here(*arguments)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_commands_and_fields():
    overall = subprocess.run(command("--help"), capture_output=True, text=True, check=True).stdout
    assert all(name in overall for name in ("train", "report", "tiny-model"))
    assert filmroll_here("--version").stdout.strip() == version("filmroll")
    fields = filmroll_here("train", "--help").stdout
    assert "--environment.images" in fields
    assert "--resume" in fields
