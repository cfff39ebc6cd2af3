"""Models by their names on a hub: a loopback one that serves, refuses, fails, hangs and lies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from filmroll.families.hub import is_hub_name
from tests.families.conftest import QWEN3_VL

COMMIT = "c" * 40
FILES = {
    "config.json": json.dumps({"model_type": "qwen3_vl"}).encode(),
    "preprocessor_config.json": json.dumps(QWEN3_VL).encode(),
    "model.safetensors": b"weights that nobody asked for",
}
LOAD = """
import json, sys
from filmroll.errors import CheckpointError
from filmroll.families import load_family
try:
    for name in sys.argv[1:]:
        family = load_family(name)
        load_family(name)
    print(json.dumps({"fingerprint": family.fingerprint}))
except CheckpointError as error:
    print(json.dumps({"problem": error.problem, "remedy": error.remedy, "wire": error.wire()["message"]}))
"""


class Hub:
    """Answers as the hub does; `answer` may be replaced by a rude one."""

    def __init__(self) -> None:
        self.files = dict(FILES)
        self.asked: list[str] = []
        self.answer: Callable[[str], tuple[int, dict[str, str], bytes] | None] = lambda path: None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(self.path)
                status, headers, body = hub.answer(self.path) or hub.well_behaved(self.path)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 the server's own spelling

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def well_behaved(self, path: str) -> tuple[int, dict[str, str], bytes]:
        path = path.partition("?")[0]
        if path in ("/api/models/org/tiny/revision/main", f"/api/models/org/tiny/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in self.files]
            return 200, {}, json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode()
        name = path.rpartition("/")[2]
        if path not in (f"/org/tiny/resolve/main/{name}", f"/org/tiny/resolve/{COMMIT}/{name}"):
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if name not in self.files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}, self.files[name]


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def load(hub: Hub, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What loading the names says, in a process whose hub and cache are the test's."""

    def load(*names: str, **environment: str) -> dict[str, Any]:
        variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "HF_HUB_ETAG_TIMEOUT": "1",
            **environment,
        }
        done = subprocess.run(
            [sys.executable, "-c", LOAD, *names],
            env=variables,
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        )
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return said

    return load


def asked_for(hub: Hub) -> list[str]:
    return [path for path in hub.asked if "org/tiny" in path]


def test_it_serves_once_and_the_small_files_alone(hub: Hub, load: Any, model_folder: Any) -> None:
    from filmroll.families import load_family

    assert load("org/tiny", f"org/tiny@{COMMIT}")["fingerprint"] == load_family(model_folder()).fingerprint
    assert any("config.json" in path for path in hub.asked)
    assert not any("safetensors" in path for path in hub.asked)
    hub.asked.clear()
    assert "fingerprint" in load("org/tiny")
    assert asked_for(hub) == [], "what the cache holds is taken without asking"
    assert "fingerprint" in load("org/tiny", HF_HUB_OFFLINE="1")


def test_offline_it_says_what_is_missing_and_how_to_provide_it(hub: Hub, load: Any) -> None:
    said = load("org/tiny", HF_HUB_OFFLINE="1")
    assert "org/tiny" in said["problem"]
    assert "config.json" in said["problem"]
    assert "hf download" in said["remedy"]
    assert asked_for(hub) == []


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_a_file_that_the_model_lacks_is_named(hub: Hub, load: Any, file: str) -> None:
    del hub.files[file]
    assert file in load("org/tiny")["problem"]


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ((404, {"X-Error-Code": "RepoNotFound"}, b""), "no such model"),
        ((404, {"X-Error-Code": "RevisionNotFound"}, b""), "no such model or revision"),
        ((403, {"X-Error-Code": "GatedRepo"}, b""), "those it knows"),
        ((500, {}, b"boom"), "hub"),
        ((200, {}, b"<html>please log in</html>"), "hub"),
        ((200, {}, b"[]"), "hub"),
        ((301, {"Location": "http://127.0.0.1:1/"}, b""), "hub"),
    ],
    ids=["missing", "no-revision", "gated", "broken", "a-page", "no-object", "led-astray"],
)
def test_it_refuses(hub: Hub, load: Any, answer: Any, word: str) -> None:
    hub.answer = lambda path: answer if "org/tiny" in path else None
    said = load("org/tiny")
    assert word in said["problem"]
    assert said["remedy"]
    assert hub.url not in said["wire"]


def test_it_hangs(hub: Hub, load: Any) -> None:
    """Three times as long as it has for an answer, which is then a good one: who waited for it would succeed."""

    def hang(path: str) -> None:
        if "org/tiny" in path:
            time.sleep(3)

    hub.answer = hang
    started = time.monotonic()
    assert "hub" in load("org/tiny", HF_HUB_DOWNLOAD_TIMEOUT="1")["problem"]
    assert time.monotonic() - started < 150


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"<html>not json</html>", {}),
        (b"[]", {}),
        (b"{", {}),
        (b'{"model_type": "qwen3_vl"}', {"Content-Length": "999"}),
    ],
    ids=["a-page", "no-object", "cut", "promises-more"],
)
def test_it_lies_about_a_file(hub: Hub, load: Any, body: bytes, headers: dict[str, str]) -> None:
    def lie(path: str) -> Any:
        if path.endswith("/config.json"):
            return 200, {"ETag": '"lie"', "X-Repo-Commit": COMMIT, **headers}, body
        return None

    hub.answer = lie
    said = load("org/tiny")
    assert "config.json" in said["problem"] or "hub" in said["problem"]


@pytest.mark.parametrize("name", ["org/tiny", "org/tiny@main", "org/tiny@refs/pr/1"])
def test_names_of_the_hub(name: str) -> None:
    assert is_hub_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "gpt2", "/abs/path", "./org/tiny", "~/org", "a/b/c", "org/", "org/ti ny", "../x", "a@"]
)
def test_what_is_no_name_of_the_hub(name: str) -> None:
    assert not is_hub_name(name)


def test_a_folder_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    assert not is_hub_name("org/tiny")
