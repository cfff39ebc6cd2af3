"""vLLM with the plugin under every attack of attacks/, told to take references and nothing else.

Tensors and content parts are vLLM's own where it takes them, and so is what they do to it: hence a server of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from target import Target

from tests.attacks.attacks import broken, every_attack
from tests.store.effort import FULL
from tests.vllm.serving import serving

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def target(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    store, log = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("server") / "vllm.log"
    told = {"store": str(store), "cache_bytes": 0, "only_references": True}
    with serving(tiny_model, store, log, told) as server:
        yield Target(server.url, tiny_model, store, pid=server.pid, thorough=FULL)


@pytest.mark.timeout(3600)
@every_attack
def test_vllm_holds(target: Target, name: str) -> None:
    assert broken(name, target) == []
