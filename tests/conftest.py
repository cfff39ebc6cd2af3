"""What many rooms' tests need: one tiny model, its renderer, and a served engine, made once a session."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from filmroll.families.tiny import build_tiny_model
from filmroll.render import Renderer, load_renderer
from filmroll.store import open_store

# How long an example takes is the machine's business: a busy one is no counterexample.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

SERVE = """
import sys
from pathlib import Path
from filmroll.engine.embedded.server import serve
from filmroll.store import open_store
model, store, weights = sys.argv[1:]
serve(Path(model), open_store(store), Path(weights), name="tiny", threads=1,
      on_ready=lambda url: print(url, flush=True))
"""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def renderer(tiny_model: Path, tmp_path: Path) -> Renderer:
    return load_renderer(tiny_model, open_store(tmp_path / "images"))


@dataclass(frozen=True)
class Served:
    """An embedded engine in a process of its own."""

    url: str
    store: Path
    weights: Path
    pid: int


@contextmanager
def serving(model: Path, store: Path, weights: Path) -> Iterator[Served]:
    command = [sys.executable, "-c", SERVE, str(model), str(store), str(weights)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Served(process.stdout.readline().strip(), store, weights, process.pid)
        finally:
            process.kill()


@pytest.fixture(scope="session")
def served(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tiny_model, tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("weights")) as served:
        yield served
