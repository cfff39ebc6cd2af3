"""What the embedded engine says of itself, so that clients need not be told."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest

from filmroll.engine.embedded.engine import EmbeddedEngine
from filmroll.engine.embedded.server import build_app
from filmroll.wire.capabilities import ROUTE, Capabilities, read_capabilities
from tests.engine.conftest import open_engine


def said_by(engine: EmbeddedEngine) -> Capabilities:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=build_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as http:
            return await http.get(ROUTE)

    response = asyncio.run(ask())
    assert response.status_code == 200
    return read_capabilities(response.content)


@pytest.mark.parametrize("weights", [True, False])
def test_it_says_which_model_it_serves_and_how_it_is_asked(desk: Any, tmp_path: Path, weights: bool) -> None:
    with open_engine(desk, tmp_path if weights else None, max_model_len=512) as engine:
        said = said_by(engine)
    assert (said.engine, said.engine_version, said.model) == ("filmroll", version("filmroll"), "tiny")
    assert said.max_model_len == 512
    assert said.ways == ["references", "content_parts"]
    assert (said.family, said.fingerprint, said.recipes) == ("qwen_vl", desk.family.fingerprint, [desk.family.recipe])
    assert said.weights == weights
