from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.families.cases.base import Case
from tests.families.theirs import processors

QWEN3_VL = {"patch_size": 16, "size": {"shortest_edge": 65536, "longest_edge": 16777216}}
MakeFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Where transformers' own processors work."""
    with processors() as pool:
        yield pool


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """The folder of a case, written once."""

    @cache
    def build(case: Case) -> Path:
        folder = tmp_path_factory.mktemp("case") / "model"
        case.build(folder)
        return folder

    return build


@pytest.fixture
def model_folder(tmp_path: Path) -> MakeFolder:
    """Writes a checkpoint folder that has everything a family reads and no weights."""

    def make(processor: dict[str, Any] | None = None, model_type: str = "qwen3_vl", **config: Any) -> Path:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **config}))
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(QWEN3_VL if processor is None else processor))
        return tmp_path

    return make
