"""A whole run without a store: images travel inside their references, to engine and trainer alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from filmroll.errors import ConfigError
from filmroll.run.config import Config, load_config
from filmroll.run.directory import RunDirectory
from filmroll.store import Manifest
from tests.run.test_train import EXAMPLE, rows, train


def test_an_inline_run_trains_and_stores_nothing(tiny_model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "inline"
    done = train(directory, 1, 1, "--multimodal.mode", "inline", "--model", str(tiny_model))
    assert done.returncode == 0, done.stdout + done.stderr
    for row in rows(directory):
        assert len(set(row["trainer_receipt"].values())) == 1
        assert row["trainer_receipt"]["consumed"] > 0
    for row in rows(directory, "rl"):
        assert set(row["engine_receipt"].values()) == {row["images"]}
        assert row["request_bytes"] > row["images"] * 60
    assert not (directory / "assets").exists()
    for record in (directory / "rollouts").glob("*.jsonl"):
        assert "data:image/png;base64," in record.read_text()
        assert "file://" not in record.read_text()
    assert "data:image/png;base64," in (directory / "report.html").read_text()
    run = RunDirectory.open(directory)
    assert Manifest(run.open_store(run.config()), run.manifest_name()).labels() == []


def test_an_inline_run_has_no_place() -> None:
    with pytest.raises(ConfigError, match="mode inline keeps images nowhere"):
        load_config(EXAMPLE, ["--multimodal.mode", "inline", "--multimodal.store", "images"])
    assert Config().multimodal.mode == "raw"
