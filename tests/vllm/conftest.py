"""One server for all tests of a session: its start takes most of their time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from filmroll.families import load_family
from filmroll.store import open_store
from tests.vllm.conversations import Desk
from tests.vllm.serving import Server, serving


@pytest.fixture(scope="session")
def desk(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    store_dir = tmp_path_factory.mktemp("images")
    config = json.loads((tiny_model / "config.json").read_text())
    return Desk(
        model=tiny_model,
        store_dir=store_dir,
        store=open_store(store_dir),
        family=load_family(tiny_model, backend="torchvision"),
        pillow=load_family(tiny_model),
        start=config["vision_start_token_id"],
        end=config["vision_end_token_id"],
    )


@pytest.fixture(scope="session")
def vllm(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It keeps no decoded images of its own, so what is not decoded again is in vLLM's cache."""
    log = tmp_path_factory.mktemp("server") / "vllm.log"
    with serving(desk.model, desk.store_dir, log, {"store": str(desk.store_dir), "cache_bytes": 0}) as server:
        yield server
