from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from filmroll.families.tiny import build_tiny_model

QWEN3_VL = {"patch_size": 16, "size": {"shortest_edge": 65536, "longest_edge": 16777216}}
MakeFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def model_folder(tmp_path: Path) -> MakeFolder:
    """Writes a checkpoint folder that has everything a family reads and no weights."""

    def make(processor: dict[str, Any] | None = None, model_type: str = "qwen3_vl", **config: Any) -> Path:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **config}))
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(QWEN3_VL if processor is None else processor))
        return tmp_path

    return make
