"""`filmroll serve` as a user starts it: lines that say where, signals that end all, mistakes that are one line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import pytest

from filmroll.render import Renderer
from filmroll.rollout.client import EngineClient
from filmroll.store import open_store
from filmroll.wire.generate import SamplingParams
from tests.command_line import filmroll_here
from tests.run.test_child import gone
from tests.run.test_train import wait_until

FAILS = 2


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "filmroll", "serve", *map(str, arguments)]


@contextmanager
def serving(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str], lines: int) -> list[dict[str, Any]]:
    assert process.stdout is not None
    rows = [json.loads(process.stdout.readline() or "null") for _ in range(lines)]
    return sorted(rows, key=lambda row: row["replica"])


def tokens(urls: list[str], renderer: Renderer, image: Path) -> list[list[int]]:
    """What each server samples, greedily, about a picture."""
    content = [{"type": "image", "image": str(image)}, {"type": "text", "text": "What is it?"}]
    prompt = renderer.render([{"role": "user", "content": content}])

    async def ask(url: str) -> list[int]:
        async with EngineClient(url) as client:
            done = await client.generate(prompt, SamplingParams(max_tokens=3, temperature=0), request_id="a")
            assert done.receipt.consumed == 1
            return done.token_ids

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*map(ask, urls))

    return asyncio.run(all_of_them())


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (64, 32), "teal").save(tmp_path / "teal.png")
    return tmp_path / "teal.png"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    open_store(folder)
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("as_json", [False, True])
def test_one_answers_where_people_or_programs_are_told_and_ends_when_it_is_told(
    tiny_model: Path, renderer: Renderer, images: Path, picture: Path, as_json: bool
) -> None:
    with serving(tiny_model, "--store", images, "--port", 0, *(["--json"] if as_json else [])) as process:
        assert process.stdout is not None
        if as_json:
            (row,) = said(process, 1)
            url = row.pop("url")
            assert row == {"replica": 0, "pid": process.pid, "model": tiny_model.name, "engine": "embedded"}
        else:
            line = process.stdout.readline()
            assert line.startswith(f"serving {tiny_model.name} at http://127.0.0.1:")
            url = line.split()[-1]
        with urlopen(f"{url}/health", timeout=60) as answer:  # noqa: S310 - our own server
            assert answer.status == 200
        assert len(tokens([url], renderer, picture)[0]) == 3
        process.send_signal(signal.SIGTERM)
        output, complaint = process.communicate(timeout=150)
    assert process.returncode == 0
    assert output == ""
    assert "Traceback" not in complaint


def test_told_to_end_while_its_model_is_loaded_it_says_so_and_ends(tiny_model: Path, images: Path) -> None:
    with serving(tiny_model, "--store", images, "--port", 0) as process:
        wait_until(lambda: any("torch" in one.path for one in psutil.Process(process.pid).memory_maps()))
        process.send_signal(signal.SIGTERM)
        output, complaint = process.communicate(timeout=150)
    # Where the machine was quick, it served by then.
    served = "serving" in output
    assert process.returncode == (0 if served else 128 + signal.SIGTERM)
    assert served or complaint.splitlines() == ["ended by SIGTERM"]


def test_replicas_answer_where_it_says_and_one_that_dies_ends_all_with_its_name(
    tiny_model: Path, renderer: Renderer, images: Path, picture: Path
) -> None:
    arguments = ("--replicas", 2, "--store", images, "--port", 0, "--name", "mine", "--json")
    with serving(tiny_model, *arguments) as process:
        rows = said(process, 2)
        assert [row["replica"] for row in rows] == [0, 1]
        assert {row["model"] for row in rows} == {"mine"}
        assert len({row["url"] for row in rows}) == len({row["pid"] for row in rows}) == 2
        assert len(set(map(tuple, tokens([row["url"] for row in rows], renderer, picture)))) == 1
        os.kill(rows[1]["pid"], signal.SIGKILL)
        output, complaint = process.communicate(timeout=150)
    assert process.returncode == 1
    assert output == ""
    assert not any(psutil.pid_exists(row["pid"]) for row in rows)
    last = complaint.strip().splitlines()[-1]
    assert last.startswith("RunError: process replica 1 ended with status -9 (it last said: ")
    assert "Traceback" not in complaint


def test_a_second_signal_waits_for_no_replica(tiny_model: Path, images: Path) -> None:
    """One that is stopped hears nothing; it would be waited for."""
    with serving(tiny_model, "--replicas", 2, "--store", images, "--port", 0, "--json") as process:
        stopped, other = (psutil.Process(row["pid"]) for row in said(process, 2))
        stopped.suspend()
        process.send_signal(signal.SIGINT)
        wait_until(lambda: not other.is_running())
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=60)
        wait_until(lambda: not stopped.is_running())
    assert process.returncode == 130
    assert complaint.splitlines()[-1] == "interrupted"
    assert "Traceback" not in complaint


def test_replicas_end_with_whoever_started_them(tiny_model: Path, images: Path) -> None:
    """kill -9 of the command: nothing can be told, and nothing is left."""
    with serving(tiny_model, "--replicas", 2, "--store", images, "--port", 0, "--json") as process:
        rows = said(process, 2)
        process.kill()
        process.wait()
        end = time.monotonic() + 60
        while any(psutil.pid_exists(row["pid"]) for row in rows):
            assert time.monotonic() < end
            time.sleep(0.1)


def test_mistakes_are_one_line(tiny_model: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.json").write_text('{"model_type": "strange"}')
    (tmp_path / "strange" / "preprocessor_config.json").write_text('{"image_processor_type": "Strange"}')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        mistakes: list[tuple[tuple[object, ...], str]] = [
            ((tmp_path / "nowhere",), "not a folder"),
            ((tmp_path / "empty",), "CheckpointError"),
            ((tmp_path / "strange",), "UnknownFamilyError"),
            ((tiny_model, "--port", port), f"port {port} of 127.0.0.1"),
            ((tiny_model, "--port", port - 1, "--replicas", 2), f"port {port} of 127.0.0.1"),
            ((tiny_model, "--port", 65535, "--replicas", 2), "port 65536"),
            ((tiny_model, "--replicas", 0), "--replicas"),
            ((tiny_model, "--engine", "sglang"), "--engine"),
            ((tiny_model, "--store", tmp_path / "nowhere"), "there is no such folder"),
            ((tiny_model, "--weights", tmp_path / "nowhere"), "there is no such folder"),
            ((tiny_model, "--", "--dtype", "float32"), "'--dtype'"),
            ((tiny_model, "--engine", "vllm", "--vllm-command", "no-vllm-here"), "'no-vllm-here' is not found"),
            ((tiny_model, "--engine", "vllm", "--vllm-command", sys.executable, "--", "--port=3"), "--port is given"),
        ]
        for arguments, complaint in mistakes:
            port_of_its_own = () if "--port" in arguments else ("--port", 0)
            done = filmroll_here("serve", arguments[0], *port_of_its_own, *arguments[1:])
            assert done.returncode == FAILS, (arguments, done.stderr)
            assert complaint in done.stderr, done.stderr
            assert "Traceback" not in done.stderr, done.stderr


PRETENDER = f"""#!{sys.executable}
import http.server, json, os, subprocess, sys
core = subprocess.Popen(["sleep", "1000"])
connector = os.environ.get("VLLM_MEDIA_CONNECTOR")
print(json.dumps({{"argv": sys.argv[1:], "connector": connector, "pid": os.getpid(), "core": core.pid}}))
sys.stdout.flush()
if "--fail" in sys.argv:
    sys.exit("no more memory")
class Well(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *arguments):
        pass
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Well).serve_forever()
"""
"""In vLLM's place: starts a process as vLLM does, tells how it was started itself, and is well. The real one is in
tests/vllm."""


@pytest.fixture
def pretender(tmp_path: Path) -> Path:
    place = tmp_path / "vllm"
    place.write_text(textwrap.dedent(PRETENDER))
    place.chmod(0o755)
    return place


@pytest.mark.parametrize(
    ("more", "only", "sign"), [((), True, signal.SIGINT), (("--any-images",), False, signal.SIGTERM)]
)
def test_vllm_is_started_with_what_references_need(
    tiny_model: Path, images: Path, tmp_path: Path, pretender: Path, more: tuple[str, ...], only: bool, sign: int
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    arguments = ("--engine", "vllm", "--vllm-command", pretender, "--store", images, "--weights", weights, "--json")
    with serving(tiny_model, *arguments, *more, "--replicas", 2, "--port", 0, "--", "--dtype", "float32") as process:
        rows = said(process, 2)
        process.send_signal(sign)
        _, heard = process.communicate(timeout=60)
    assert process.returncode == 0
    told = [json.loads(line.partition("| ")[2]) for line in heard.splitlines() if '"argv"' in line]
    assert {one["pid"] for one in told} == {row["pid"] for row in rows}
    for one in told:
        flags = one["argv"]
        given = dict(pairwise(flags))
        assert flags[:2] == ["serve", str(tiny_model)]
        assert flags[-2:] == ["--dtype", "float32"]
        assert {"--enable-scale-out", "--enable-prefix-caching"} < set(flags)
        assert given["--logprobs-mode"] == "processed_logprobs"
        assert given["--served-model-name"] == tiny_model.name
        settings = json.loads(given["--additional-config"])["filmroll"]
        assert (settings["store"], settings["weights"]) == (str(images), str(weights))
        assert settings["only_references"] is only
        assert json.loads(given["--weight-transfer-config"]) == {"backend": "filmroll"}
        assert one["connector"] == "filmroll"
    assert len({one["argv"][one["argv"].index("--seed") + 1] for one in told}) == 2


def test_a_vllm_that_is_killed_leaves_nothing(tiny_model: Path, pretender: Path) -> None:
    """What vLLM has started holds its output open, and on an accelerator its memory."""
    with serving(tiny_model, "--engine", "vllm", "--vllm-command", pretender, "--port", 0, "--json") as process:
        (row,) = said(process, 1)
        os.kill(row["pid"], signal.SIGKILL)
        _, heard = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "RunError: process replica 0 ended with status -9" in heard
    told = json.loads(next(line for line in heard.splitlines() if line.startswith("replica 0 | {")).partition("| ")[2])
    assert gone(told["core"])


def test_a_vllm_that_does_not_start_is_quoted(tiny_model: Path, pretender: Path) -> None:
    arguments = ("--engine", "vllm", "--vllm-command", pretender, "--port", 0)
    done = subprocess.run(command(tiny_model, *arguments, "--", "--fail"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "replica 0 | no more memory" in done.stderr
    assert "RunError: process replica 0 ended with status 1 (it last said: no more memory)" in done.stderr
    assert "Traceback" not in done.stderr
