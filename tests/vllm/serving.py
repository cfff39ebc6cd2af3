"""A vLLM server in a process of its own, in the environment that `make test-vllm` makes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import psutil

from filmroll.run.processes.child import leashed
from tests.vllm.environment import PLACE, ROOT

PYTHON = PLACE / "bin" / "python"
START_S = 600
"""Far more than the minute that it takes: the machine may be busy."""

FLAGS = (
    *("--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"),
    *("--max-num-seqs", "8", "--kv-cache-memory-bytes", str(64 << 20)),
    *("--enable-scale-out", "--logprobs-mode", "processed_logprobs"),
    *("--middleware", "tests.vllm.sabotage.sabotage"),
)
CONNECTED = {"VLLM_MEDIA_CONNECTOR": "filmroll"}
"""Has stored images fetched by filmroll's own media connector."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
}


@dataclass(frozen=True)
class Answer:
    status: int
    body: dict[str, Any]
    headers: httpx.Headers

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.body["error"]
        return error

    @property
    def tokens(self) -> list[int]:
        assert self.status == 200, self.body
        tokens: list[int] = self.body["choices"][0]["token_ids"]
        return tokens

    @property
    def logprobs(self) -> list[float]:
        assert self.status == 200, self.body
        return [one["logprob"] for one in self.body["choices"][0]["logprobs"]["content"]]


class Server:
    """What tests ask of a running server."""

    def __init__(self, url: str, process: psutil.Process, log: Path) -> None:
        self.url, self.log = url, log
        self._process = process
        self._http = httpx.Client(base_url=url, timeout=120)

    @property
    def pid(self) -> int:
        return self._process.pid

    def post(self, path: str, body: Any) -> Answer:
        response = self._http.post(path, json=body)
        return Answer(response.status_code, response.json() if response.content else {}, response.headers)

    def answers(self) -> bool:
        try:
            return self._http.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def get(self, path: str) -> Answer:
        response = self._http.get(path)
        return Answer(response.status_code, response.json(), response.headers)

    def generate(self, body: dict[str, Any]) -> Answer:
        return self.post("/inference/v1/generate", body)

    def stream(self, body: dict[str, Any]) -> list[str]:
        response = self._http.post("/inference/v1/generate", json=body)
        assert response.status_code == 200, response.text
        return [line for line in response.text.splitlines() if line]

    def together(self, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(self.generate, bodies))

    def metric(self, name: str) -> float:
        lines = self._http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))

    def counts(self) -> dict[str, float]:
        """filmroll's own metrics, less their prefix."""
        lines = self._http.get("/metrics").text.splitlines()
        pairs = (line.rpartition(" ") for line in lines if line.startswith("filmroll_engine_"))
        return {name.removeprefix("filmroll_engine_"): float(value) for name, _, value in pairs}

    def processes(self) -> set[int]:
        """The server's and its engine's; another set means that something was killed."""
        return {self._process.pid, *(one.pid for one in self._process.children(recursive=True))}


def streamed(lines: Sequence[str]) -> list[int]:
    """The tokens of a stream that ends whole."""
    *chunks, last = (line.removeprefix("data: ") for line in lines)
    assert last == "[DONE]"
    return [token for chunk in chunks for token in json.loads(chunk)["choices"][0]["token_ids"]]


@contextmanager
def serving(
    model: Path,
    files: Path,
    log: Path,
    told: dict[str, Any] | None,
    flags: Sequence[str] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Server]:
    """A server of the model that may read files below `files`, told this of filmroll, or nothing; flags come last."""
    assert PYTHON.exists(), "run make test-vllm, which makes the environment"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(PYTHON.with_name("vllm")), "serve", str(model), "--port", str(port), *FLAGS]
    command += ["--allowed-local-media-path", str(files)]
    command += [] if told is None else ["--additional-config", json.dumps({"filmroll": told})]
    with log.open("wb") as output:
        process = subprocess.Popen(
            # However the tests end, a server does not outlive them.
            leashed([*command, *flags]),
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT, **environment},
            cwd=ROOT,
        )
    running = psutil.Process(process.pid)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process, log)
        yield Server(url, running, log)
    finally:
        family = [running]
        with suppress(psutil.NoSuchProcess):
            family += running.children(recursive=True)
        process.terminate()
        _, left = psutil.wait_procs(family, timeout=20)
        for one in left:
            one.kill()
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise AssertionError(f"vLLM did not start in {START_S} s: {log.read_text()[-4000:]}")
