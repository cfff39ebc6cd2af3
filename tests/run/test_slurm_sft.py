"""What `filmroll slurm` writes for supervised training: the orchestrator and the trainer, on its nodes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from filmroll.errors import ConfigError
from filmroll.run.cluster.slurm import job_script
from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from tests.run.test_slurm import started
from tests.run.test_train import command


def made(place: Path, **sections: Any) -> tuple[RunDirectory, Config]:
    values = {"run": {"directory": str(place / "run")}, "data": {"path": "chats.jsonl"}, **sections}
    run = RunDirectory.create(Config.model_validate(values))
    return run, run.config()


def test_nothing_is_played(tmp_path: Path) -> None:
    script = job_script(*made(tmp_path))
    assert started(script) == ["step trainer 0 - trainer"]
    assert '"$PYTHON" -m filmroll orchestrator --run "$RUN" &' in script


def test_engines_that_would_not_fit_are_not_counted(tmp_path: Path) -> None:
    """The trainer has all GPUs of its nodes, and engines are of no concern."""
    sections = {
        "slurm": {"nodes": 2, "gpus_per_node": 4, "engine_nodes": [9]},
        "trainer": {"ranks": 8, "nodes": 2, "device": "cuda"},
        "engine": {"device": "cuda"},
        "cluster": {"network": "hostname"},
    }
    run, config = made(tmp_path, **sections)
    assert started(job_script(run, config)) == [
        "step trainer-0 0 0,1,2,3 trainer --name trainer-0",
        "step trainer-1 1 0,1,2,3 trainer --name trainer-1",
    ]
    with pytest.raises(ConfigError, match="trainer is to have 2 GPUs, and node 0 has 1 GPU"):
        job_script(*made(tmp_path / "two", slurm={"gpus_per_node": 1}, trainer={"ranks": 2, "device": "cuda"}))


def test_whose_run_it_is_stays_so_when_it_is_submitted_again(tmp_path: Path) -> None:
    """By what began it, whatever its configuration names beside."""
    run, config = made(tmp_path)
    run.event("started", command="train")
    assert len(started(job_script(run, config))) == 3


def test_the_command_takes_the_file_of_supervised_training(tmp_path: Path) -> None:
    file, folder = tmp_path / "sft.toml", tmp_path / "run"
    file.write_text('[data]\npath = "chats.jsonl"\n[trainer]\nranks = 2\n')
    done = subprocess.run(
        command("slurm", str(file), "--run", str(folder), "--dry-run"),
        capture_output=True, text=True, check=False, timeout=200, env=os.environ | {"PATH": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{folder / 'job.sh'}\n"), done.stderr
    assert started((folder / "job.sh").read_text()) == ["step trainer 0 - trainer"]
    assert json.loads((folder / "config.json").read_text())["data"]["path"] == "chats.jsonl"
