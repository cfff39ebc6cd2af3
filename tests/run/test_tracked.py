"""A run's rows in Weights & Biases: wandb itself, which writes to a folder what it would send."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from filmroll.errors import ConfigError
from filmroll.run.config import Config
from filmroll.run.courses.tracked import tracked
from filmroll.run.directory import RunDirectory
from tests.run.test_train import EXAMPLE, command, flags, rows

OFFLINE = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)


def records(run: Path) -> Iterator[Any]:
    """What wandb has kept of a run, whichever times it was gone on with."""
    from wandb.proto.wandb_internal_pb2 import Record

    for file in sorted(run.glob("wandb/offline-run-*/run-*.wandb")):
        yield from map(Record.FromString, entries(file.read_bytes()))


def entries(log: bytes, block: int = 32768, head: int = 7) -> Iterator[bytes]:
    """Of a log as LevelDB has them: blocks of pieces, each with checksum, length, and which part of an entry it is."""
    at, entry = head, b""
    while at + head <= len(log):
        if block - at % block < head:
            at += block - at % block
            continue
        length, part = struct.unpack_from("<HB", log, at + 4)
        entry += log[at + head : at + head + length]
        at += head + length
        if part in (1, 4):
            yield entry
            entry = b""


def history(run: Path) -> list[dict[str, Any]]:
    """The rows, by the names that charts have."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(run)
        if record.WhichOneof("record_type") == "history"
    ]


def made(place: Path, **sections: dict[str, Any]) -> RunDirectory:
    settings = {"run": {"directory": str(place / "run"), "wandb": "letters"}, **sections}
    return RunDirectory.create(Config.model_validate(settings))


def test_a_run_and_what_goes_on_with_it_are_one_run_with_all_rows(tiny_model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    more = ["--model", str(tiny_model), "--run.wandb", "letters", "--rl.evaluate_every", "1", "--eval.episodes", "2"]
    begun = command("train", str(EXAMPLE), *flags(directory, 1, 1, *more))
    for words in (begun, command("train", "--resume", str(directory), "--rl.steps", "2")):
        done = subprocess.run(words, capture_output=True, text=True, timeout=250, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr

    kept = history(directory)
    assert [row.get("warmup/step", row.get("rl/step")) for row in kept] == [0, 0, 1]
    for row, told in zip(rows(directory), kept, strict=True):
        phase = row["phase"]
        for name in ("loss", "reward", "held_out_reward", "images"):
            assert told.get(f"{phase}/{name}") == row.get(name)
        assert told[f"{phase}/seconds/train"] == row["seconds"]["train"]
        assert told[f"{phase}/trainer_receipt/consumed"] == row["trainer_receipt"]["consumed"]
    runs = [record.run for record in records(directory) if record.WhichOneof("record_type") == "run"]
    name = (directory / "manifest").read_text().strip()
    assert {(run.run_id, run.display_name, run.project, run.job_type) for run in runs} == {
        (name, "run", "letters", "train")
    }
    assert not [
        one for one in psutil.process_iter(["cmdline"]) if str(directory) in " ".join(one.info["cmdline"] or [])
    ]


def test_what_is_secret_is_not_sent(tmp_path: Path) -> None:
    environment = {"name": "custom", "import_path": "a:B", "arguments": {"api_key": "hush", "level": 3}}
    run = made(tmp_path, environment=environment)
    config = run.config()
    variables = {"run": config.run.model_copy(update={"env_vars": {"HF_TOKEN": "hush"}})}
    with tracked(run, config.model_copy(update=variables), lambda row: None):
        pass
    sent = "".join(str(record) for record in records(run.path))
    assert "level" in sent
    assert "hush" not in sent


def test_a_row_reaches_both_and_numbers_alone_are_told(tmp_path: Path) -> None:
    run, seen = made(tmp_path), []
    row = {
        "phase": "eval",
        "step": 3,
        "time": 1.5,
        "reward": 0.5,
        "gap": None,
        "worst": float("nan"),
        "metrics": {"a": 1},
    }
    with tracked(run, run.config(), seen.append) as observe:
        observe(row)
    assert seen == [row]
    (kept,) = history(run.path)
    assert {name: value for name, value in kept.items() if not name.startswith("_")} == {
        "eval/step": 3, "eval/reward": 0.5, "eval/metrics/a": 1,
    }  # fmt: skip


def test_without_a_project_nothing_is_loaded(tmp_path: Path) -> None:
    run = RunDirectory.create(Config.model_validate({"run": {"directory": str(tmp_path / "run")}}))
    code = f"""
import sys
from pathlib import Path
from filmroll.run.courses.tracked import tracked
from filmroll.run.directory import RunDirectory
run = RunDirectory.open(Path({str(run.path)!r}))
with tracked(run, run.config(), print) as observe:
    assert observe is print
assert "wandb" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
    assert not (run.path / "wandb").exists()


def test_whom_wandb_does_not_know_is_refused_before_anything_starts(tmp_path: Path, tiny_model: Path) -> None:
    known = {name for name in os.environ if name.endswith("API_KEY")}
    stranger = {name: value for name, value in os.environ.items() if name not in known}
    stranger |= {"WANDB_MODE": "online", "HOME": str(tmp_path)}
    words = command(
        "train", str(EXAMPLE), *flags(tmp_path / "run", 1, 1, "--model", str(tiny_model), "--run.wandb", "letters")
    )
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, env=stranger, check=False)
    assert done.returncode == 2
    assert "wandb does not take the run" in done.stderr
    assert "wandb login" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_outlives_wandb(tmp_path: Path) -> None:
    """Whose own process may be killed; nobody hears of it a second time."""
    run = made(tmp_path)
    code = f"""
import time
from pathlib import Path
import psutil
from filmroll.run.courses.tracked import tracked
from filmroll.run.directory import RunDirectory
run = RunDirectory.open(Path({str(run.path)!r}))
with tracked(run, run.config(), lambda row: print(row["step"])) as observe:
    for child in psutil.Process().children(recursive=True):
        child.kill()
        child.wait(10)
    for step in range(500):
        observe({{"phase": "rl", "step": step, "reward": 0.5}})
        time.sleep(0.05)
        if "untracked" in run.events_file.read_text():
            break
    for step in range(500, 600):
        observe({{"phase": "rl", "step": step, "reward": 0.5}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 100
    kinds = [json.loads(line)["kind"] for line in run.events_file.read_text().splitlines()]
    assert kinds.count("untracked") == 1


def test_wandb_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'filmroll\[wandb\]'"), tracked(run, run.config(), print):
        pass
