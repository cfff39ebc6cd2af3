"""A run's policy as a folder of its own, which transformers loads as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from filmroll.cli import app
from filmroll.engine.weights import write_weights
from filmroll.errors import ConfigError
from filmroll.families import load_family
from filmroll.materialize.feed import load_model
from filmroll.run.config import Config, RunConfig
from filmroll.run.directory import RunDirectory


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> RunDirectory:
    """With versions 1 and 2 of its weights, in several files each."""
    made = RunDirectory.create(Config(model=str(tiny_model), run=RunConfig(directory=str(tmp_path / "run"))))
    for version in (1, 2):
        write_weights(policy(tiny_model, version), made.weights, version, shard_bytes=1 << 20)
    return made


def policy(tiny_model: Path, version: int) -> dict[str, torch.Tensor]:
    return {name: value + version for name, value in load_model(tiny_model).state_dict().items()}


def export(*arguments: object) -> object:
    return CliRunner().invoke(app, ["export", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize(("flags", "version"), [((), 2), (("--step", 1), 1)])
def test_transformers_loads_it_whole(
    run: RunDirectory, tiny_model: Path, tmp_path: Path, flags: tuple[object, ...], version: int
) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "model"
    export(run.path, folder, *flags)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    loaded = load_model(folder).state_dict()
    for name, value in policy(tiny_model, version).items():
        assert torch.equal(loaded[name], value), name
    assert AutoTokenizer.from_pretrained(folder).encode("red") == AutoTokenizer.from_pretrained(tiny_model).encode(
        "red"
    )
    assert load_family(folder).recipe == load_family(tiny_model).recipe


def test_nothing_is_written_over(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").touch()
    with pytest.raises(ConfigError, match="is there already"):
        export(run.path, tmp_path / "model")
    assert (tmp_path / "model" / "mine").exists()


def test_a_version_that_is_not_there_is_named(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no weights of version 7, its newest are of version 2"):
        export(run.path, tmp_path / "model", "--step", 7)
    assert not (tmp_path / "model").exists()
