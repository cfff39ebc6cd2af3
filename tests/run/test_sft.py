"""Supervised training end to end: conversations in, a model that has learnt them out; resumed; and bad data."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from filmroll.store import Manifest, open_store
from tests.command_line import filmroll_here
from tests.train.test_ranks import LOSS, NORM

ROOT = Path(__file__).parents[2]
MAKE, EXAMPLE = ROOT / "examples" / "data" / "color_names.py", ROOT / "examples" / "color_names.toml"


def filmroll(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "filmroll", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, **options)


def make(folder: Path, rows: int, *more: str) -> Path:
    subprocess.run([sys.executable, str(MAKE), str(folder), str(rows), *more], check=True, capture_output=True)
    return folder


def flags(directory: Path, data: Path, model: Path, *more: object) -> list[object]:
    return [
        EXAMPLE, "--run.directory", directory, "--model", model, "--data.path", data / "train.jsonl",
        "--data.held_out_path", data / "held_out.jsonl", "--run.record_every", 3, "--sft.batch_size", 8,
        "--trainer.threads", 1, *more,
    ]  # fmt: skip


def rows(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def wait_for_rows(directory: Path, count: int) -> None:
    end = time.monotonic() + 200
    while not (directory / "metrics.jsonl").exists() or len(rows(directory)) < count:
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def events(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """28 rows to learn, 4 held out: four steps of eight an epoch, the last one with four."""
    return make(tmp_path_factory.mktemp("data"), 32)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path, tiny_model: Path) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "sft"
    done = filmroll("sft", *flags(directory, data, tiny_model, "--sft.epochs", 2, "--sft.measure_every", 4))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("loss on held-out rows: ")
    assert last.endswith(f"report: {directory / 'report.html'}")
    return directory


def test_every_step_is_counted(finished: Path) -> None:
    made = rows(finished)
    assert [row["step"] for row in made] == list(range(8))
    assert [row["rows"] for row in made] == [8, 8, 8, 4] * 2
    assert [row["epoch"] for row in made][3::4] == [1.0, 2.0]
    assert [("held_out_loss" in row) for row in made] == [False, False, False, True] * 2
    for row in made:
        assert set(row["trainer_receipt"].values()) >= {row["images"]}
        assert row["images"] == row["rows"]
        assert row["trained_tokens"] > row["rows"]
    # The first epoch brings all images, the second none.
    assert sum(row["images_new"] for row in made) == sum(row["images_new"] for row in made[:4]) == 28
    assert made[0]["learning_rate"] < made[1]["learning_rate"]


def test_images_are_in_the_store_once_and_kept(finished: Path, data: Path) -> None:
    store = open_store(finished / "assets" / "images")
    manifest = Manifest(store, (finished / "manifest").read_text().strip())
    labels = manifest.labels()
    assert labels == ["held_out", *(f"sft_{step:06d}" for step in range(4))]
    kept = {name for label in labels for name in manifest.images(label)}
    files = list((finished / "assets" / "images").rglob("*.png"))
    assert len(files) == len(kept) == len({path.read_bytes() for path in (data / "pictures").iterdir()})


def test_the_trained_model_is_one_that_transformers_loads(finished: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForImageTextToText

    loaded = AutoModelForImageTextToText.from_pretrained(finished / "trained")
    (weights,) = (finished / "weights" / "step_8").glob("*.safetensors")
    written = load_file(weights)
    assert {name: value.shape for name, value in loaded.state_dict().items()}.items() >= {
        name: value.shape for name, value in written.items()
    }.items()
    assert all((loaded.state_dict()[name] == value).all() for name, value in written.items())
    before = load_file(tiny_model / "model.safetensors")
    assert any((before[name] != value).any() for name, value in written.items())


def test_conversations_are_shown_in_the_report_without_rewards(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "loss on held-out rows" in page
    assert "What colour is this?" in page
    assert "mean reward" not in page
    assert 'class="badge' not in page


def test_a_killed_run_goes_on_with_the_very_rows(finished: Path, data: Path, tiny_model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "killed"
    words = ["sft", *flags(directory, data, tiny_model, "--sft.epochs", 2, "--sft.measure_every", 4)]
    words += ["--run.checkpoint_every", 2]
    command = [sys.executable, "-m", "filmroll", *map(str, words)]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_rows(directory, 3)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    wrong = filmroll_here("train", "--resume", directory)
    assert wrong.returncode == 2
    assert "filmroll sft --resume" in wrong.stderr
    done = filmroll("sft", "--resume", directory)
    assert done.returncode == 0, done.stdout + done.stderr
    again = {row["step"]: row["loss"] for row in rows(directory)}
    assert again == pytest.approx({row["step"]: row["loss"] for row in rows(finished)}, rel=1e-4)
    assert rows(directory)[-1]["held_out_loss"] == pytest.approx(rows(finished)[-1]["held_out_loss"], rel=1e-4)


def test_a_finished_run_learns_for_another_epoch(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    """And what it has learnt by then takes the place of what it had."""
    directory = tmp_path / "longer"
    steady = ("--sft.schedule", "constant", "--sft.warmup_steps", 0)
    done = filmroll("sft", *flags(directory, data, tiny_model, "--sft.epochs", 1, *steady))
    assert done.returncode == 0, done.stdout + done.stderr
    once = load_file(directory / "trained" / "model.safetensors")
    done = filmroll("sft", "--resume", directory, "--sft.epochs", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["step"] for row in rows(directory)] == list(range(8))
    assert {row["learning_rate"] for row in rows(directory)} == {1e-3}
    assert rows(directory)[-1]["held_out_loss"] < rows(directory)[3]["held_out_loss"]
    twice = load_file(directory / "trained" / "model.safetensors")
    newest = load_file(next((directory / "weights" / "step_8").glob("*.safetensors")))
    assert all((twice[name] == value).all() for name, value in newest.items())
    assert any((twice[name] != value).any() for name, value in once.items())

    back = filmroll("sft", "--resume", directory, "--sft.epochs", 1)
    assert back.returncode == 2
    assert "the run has taken 8 steps, and sft.epochs has it end after 4" in back.stderr
    assert load_file(directory / "trained" / "model.safetensors").keys() == twice.keys()


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_told_to_end_soon_it_ends_at_a_checkpoint_and_goes_on(
    finished: Path, data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "told"
    words = ["sft", *flags(directory, data, tiny_model, "--sft.epochs", 2, "--sft.measure_every", 4)]
    words += ["--run.checkpoint_every", 100]
    command = [sys.executable, "-m", "filmroll", *map(str, words)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_rows(directory, 2)
    run.send_signal(signal.SIGUSR1)
    text, _ = run.communicate(timeout=200)
    assert run.returncode == 75, text
    assert f"filmroll sft --resume {directory}" in text
    done = len(rows(directory))
    assert done < 8
    told = events(directory)
    assert [one["sft"] for one in told if one["kind"] == "checkpoint"] == [done]
    assert told[-1]["kind"] == "stopped"
    assert not (directory / "trained").exists()
    went_on = filmroll("sft", "--resume", directory)
    assert went_on.returncode == 0, went_on.stdout + went_on.stderr
    assert [row["step"] for row in rows(directory)] == list(range(8))
    assert [row["loss"] for row in rows(directory)] == pytest.approx([row["loss"] for row in rows(finished)], rel=1e-4)
    assert (directory / "trained").exists()


@pytest.mark.timeout(900)
def test_two_ranks_learn_what_one_does(finished: Path, data: Path, tiny_model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "two"
    words = flags(directory, data, tiny_model, "--sft.epochs", 2, "--sft.measure_every", 4, "--trainer.ranks", 2)
    done = filmroll("sft", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    for two, one in zip(rows(directory), rows(finished), strict=True):
        assert two.keys() == one.keys()
        for name in ("loss", "held_out_loss"):
            assert two.get(name, 0) == pytest.approx(one.get(name, 0), rel=LOSS)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=NORM)
        for name in ("trained_tokens", "images", "rows", "trainer_receipt"):
            assert two[name] == one[name]
        assert two["micro_batches"] % 2 == 0


def test_data_that_has_changed_is_not_gone_on_with(finished: Path, data: Path) -> None:
    path = data / "train.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace('"red"', '"rot"'))
    try:
        done = filmroll_here("sft", "--resume", finished)
    finally:
        path.write_text(whole)
    assert done.returncode == 2
    assert "not what this run began with" in done.stderr


@pytest.mark.timeout(900)
def test_only_pictures_tell_the_names(tmp_path: Path, tiny_model: Path) -> None:
    """What blank pictures teach is the names, and which are named more often: the loss stays near that of guessing."""
    losses = {}
    for name, more in (("colors", []), ("blank", ["--blank"])):
        data = make(tmp_path / name, 256, *more)
        settings = ["--sft.batch_size", 16, "--sft.epochs", 4, "--sft.learning_rate", 2e-3]
        done = filmroll("sft", *flags(tmp_path / f"run-{name}", data, tiny_model), *settings)
        assert done.returncode == 0, done.stdout + done.stderr
        losses[name] = rows(tmp_path / f"run-{name}")[-1]["held_out_loss"]
    # Guessing one of eight names costs log 8, spread over the three or four tokens of an answer.
    assert losses["blank"] > math.log(8) / 4
    assert losses["colors"] < losses["blank"] / 3


def test_a_bad_row_ends_the_run_before_it_begins_or_is_left_out(tmp_path: Path, data: Path, tiny_model: Path) -> None:
    lines = (data / "train.jsonl").read_text().splitlines()[:8]
    torn = json.loads(lines[1])
    torn["messages"][0]["content"][0]["image_url"]["url"] = "cut.png"
    (data / "cut.png").write_bytes((data / "pictures" / "1.png").read_bytes()[:-30])
    lines[1] = json.dumps(torn)
    lines.insert(3, json.dumps({"messages": [{"role": "user", "content": "<image> Which?"}]}))
    path = data / "bad.jsonl"
    path.write_text("\n".join(lines) + "\n")
    words = ["--data.path", path, "--sft.steps", 1, "--sft.batch_size", 16, "--no-data.shuffle"]
    refused = filmroll_here("sft", *flags(tmp_path / "refused", data, tiny_model), *words)
    assert refused.returncode == 2
    assert "bad.jsonl:4" in refused.stderr
    assert "messages[0].content" in refused.stderr
    assert "Traceback" not in refused.stderr
    skipped = filmroll("sft", *flags(tmp_path / "skipped", data, tiny_model), *words, "--data.bad", "skip")
    assert skipped.returncode == 0, skipped.stderr
    (row,) = rows(tmp_path / "skipped")
    assert (row["rows"], row["rows_skipped"]) == (7, 1)
    told = [event for event in events(tmp_path / "skipped") if event["kind"] in ("row_skipped", "data_checked")]
    assert "bad.jsonl:4" in told[0]["error"]
    assert (told[1]["rows"], told[1]["skipped"]) == (9, 1)
    assert "bad.jsonl:2" in told[-1]["error"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--data.path", ""], "data.path"),
        (["--data.path", "none.jsonl"], "none.jsonl"),
        (["--data.held_out", 4], "choose"),
        (["--sft.schedule", "stairs"], "sft.schedule"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, data: Path, tiny_model: Path, more: list[object], words: str) -> None:
    done = filmroll_here("sft", *flags(tmp_path / "run", data, tiny_model), *more)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
