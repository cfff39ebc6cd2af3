"""What a run's processes find in their environment: the one place of its images, and what is configured."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from filmroll.errors import ConfigError
from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.processes.launch import Process
from filmroll.run.processes.variables import IMAGES, launched_variables
from tests.command_line import filmroll_here

EXAMPLE = Path(__file__).parents[2] / "examples" / "color_codeword.toml"


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.delenv(IMAGES, raising=False)


def run_with(tmp_path, multimodal=None, **env_vars):
    settings = {"directory": str(tmp_path / "run"), "env_vars": env_vars}
    run = RunDirectory.create(Config.model_validate({"run": settings, "multimodal": multimodal or {}}))
    return run, run.config()


@pytest.mark.parametrize(
    ("store", "folder"),
    [("", "run/assets/images"), ("TMP/${RUN_ID}/p", "run/p"), ("file://TMP/a%20b/${RUN_ID}", "a b/run")],
)
def test_other_systems_are_told_the_folder_of_the_store(tmp_path, store, folder):
    run, config = run_with(tmp_path, {"store": store.replace("TMP", str(tmp_path))})
    told = Path(launched_variables(run, config)[IMAGES])
    assert told == tmp_path / folder
    ref = run.open_store(config).put(np.zeros((4, 4, 3), np.uint8))
    assert list(told.rglob(f"{ref.sha256}*"))


def test_a_home_folder_is_resolved_as_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run, config = run_with(tmp_path, {"store": "~/images"})
    assert launched_variables(run, config)[IMAGES] == str(tmp_path / "home" / "images")


@pytest.mark.parametrize("multimodal", [{"store": "s3://bucket/images"}, {"mode": "inline"}])
def test_where_images_are_in_no_folder_none_is_told_and_none_may_be(tmp_path, monkeypatch, multimodal):
    run, config = run_with(tmp_path, multimodal)
    assert IMAGES not in launched_variables(run, config)
    monkeypatch.setenv(IMAGES, str(tmp_path))
    with pytest.raises(ConfigError, match=IMAGES):
        launched_variables(run, config)


def test_another_place_in_the_environment_is_refused_by_both_names(tmp_path, monkeypatch):
    run, config = run_with(tmp_path)
    monkeypatch.setenv(IMAGES, "/somewhere/else")
    with pytest.raises(ConfigError) as caught:
        launched_variables(run, config)
    for word in (IMAGES, "/somewhere/else", "the environment", str(run.path / "assets" / "images"), "multimodal.store"):
        assert word in str(caught.value)


def test_another_place_in_env_vars_is_refused_by_both_names(tmp_path):
    run, config = run_with(tmp_path, **{IMAGES: "/somewhere/else"})
    with pytest.raises(ConfigError, match=r"/somewhere/else.*run\.env_vars.*assets/images"):
        launched_variables(run, config)


def test_the_same_place_may_be_said_in_other_words(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path)
    run, config = run_with(tmp_path, **{IMAGES: str(tmp_path) + "/${RUN_ID}/assets/images/"})
    monkeypatch.setenv(IMAGES, str(tmp_path / "link" / "run" / "assets" / "images"))
    assert launched_variables(run, config)[IMAGES] == str(run.path / "assets" / "images")


def test_a_run_with_another_place_in_the_environment_ends_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setenv(IMAGES, "/somewhere/else")
    done = filmroll_here("train", EXAMPLE, "--run.directory", tmp_path / "run")
    assert done.returncode == 2
    assert "/somewhere/else" in done.stderr
    assert not (tmp_path / "run").exists()


def test_launched_processes_find_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("INHERITED", "one")
    run, _ = run_with(tmp_path, OURS="two")

    async def launch():
        program = f"echo $INHERITED $OURS ${IMAGES}"
        return await (await Process.start("shell", ["sh", "-c", program], run)).exited

    assert asyncio.run(launch()) == 0
    assert (run.logs / "shell.log").read_text() == f"one two {run.path / 'assets' / 'images'}\n"
