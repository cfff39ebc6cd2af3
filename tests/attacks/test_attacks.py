"""The embedded engine, in a process of its own, under every attack of attacks/."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from target import Target

from tests.attacks.attacks import FOLDER, NAMES, broken, every_attack, outcomes
from tests.conftest import Served, serving
from tests.store.effort import FULL


@pytest.fixture(scope="module")
def engine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One that nobody else speaks to."""
    with serving(tiny_model, tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("weights")) as served:
        yield served


@pytest.fixture(scope="module")
def target(engine: Served, tiny_model: Path) -> Target:
    return Target(engine.url, tiny_model, engine.store, pid=engine.pid, thorough=FULL)


@pytest.mark.timeout(1800)
@every_attack
def test_the_engine_holds(target: Target, name: str) -> None:
    assert broken(name, target) == []


# By hand


def by_hand(name: str, url: str, model: Path, store: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--url", url, "--model", str(model), "--store", str(store)]
    return subprocess.run([*command, *more], capture_output=True, text=True, check=False)


def test_an_attack_runs_by_hand(engine: Served, tiny_model: Path) -> None:
    done = by_hand("forged_grid", engine.url, tiny_model, engine.store, "--pid", str(engine.pid))
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("held    negative", "sent    features.kwargs_data.image[1] = ", "came    400 ", "it held"):
        assert said in done.stdout


class Gullible(http.server.BaseHTTPRequestHandler):
    """Answers whatever it is asked, as if nothing were wrong."""

    protocol_version = "HTTP/1.1"
    logprobs: dict[str, Any] = {"content": [{"token_id": 1, "logprob": -1}]}
    answer: dict[str, Any] = {"choices": [{"token_ids": [1], "logprobs": logprobs}]}
    models: dict[str, Any] = {"data": [{"id": "tiny", "max_model_len": 1024, "owned_by": "nobody"}]}

    def do_GET(self) -> None:
        self._say(self.models)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._say(self.answer)

    def _say(self, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def gullible() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gullible) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_gives_in_is_found_out_by_hand(gullible: str, tiny_model: Path, tmp_path: Path) -> None:
    done = by_hand("forged_grid", gullible, tiny_model, tmp_path)
    assert done.returncode == 1
    assert "WRONG   it is not refused" in done.stdout


WITHSTOOD = {"mutations", "slow_clients"}
"""By whoever answers everybody."""


@pytest.mark.parametrize("name", sorted(set(NAMES) - WITHSTOOD))
def test_a_server_that_gives_in_is_found_out(gullible: str, tiny_model: Path, tmp_path: Path, name: str) -> None:
    assert any(outcome.wrong for outcome in outcomes(name, Target(gullible, tiny_model, tmp_path)))
