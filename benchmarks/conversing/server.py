"""An engine as `filmroll serve` starts it, asked over HTTP, and what it costs."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil

ROOT = Path(__file__).parents[2]
IMAGE_SECONDS = ("filmroll_engine_image_read_seconds_sum", "filmroll_engine_image_decode_seconds_sum")
"""What its readers spent on reading, verifying and decoding images."""
MODEL_SECONDS = ("vllm:request_inference_time_seconds_sum",)
"""From where vLLM's engine takes a request up to the last token."""
VLLM_FLAGS = ("--dtype", "float32", "--max-model-len", "12288", "--enforce-eager", "--max-num-seqs", "8",
              "--kv-cache-memory-bytes", str(512 << 20), "--limit-mm-per-prompt", '{"image": 16}')  # fmt: skip
VLLM_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1"}


class Server:
    """A running engine, and what it costs."""

    def __init__(self, url: str, process: psutil.Process) -> None:
        self._host = urlsplit(url).netloc
        self._process = process
        self.peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def ask(self, body: bytes) -> list[int]:
        connection = http.client.HTTPConnection(self._host, timeout=600)
        connection.request("POST", "/inference/v1/generate", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if answer.status != 200:
            raise SystemExit(f"the engine answered {answer.status}: {content[:2000]!r}")
        tokens: list[int] = json.loads(content)["choices"][0]["token_ids"]
        return tokens

    def cpu_seconds(self) -> float:
        times = [one.cpu_times() for one in self._family()]
        return float(sum(one.user + one.system for one in times))

    def counted(self, names: tuple[str, ...]) -> float:
        """What its own metrics of these names add up to."""
        connection = http.client.HTTPConnection(self._host, timeout=60)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names))

    def _family(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def _watch(self) -> None:
        while True:
            try:
                self.peak = max(self.peak, sum(one.memory_info().rss for one in self._family()))
            except psutil.Error:
                return
            time.sleep(0.1)


@contextmanager
def serving(engine: str, model: Path, store: Path, work: Path) -> Iterator[Server]:
    """An engine with a model and a store; vLLM takes tensors, too."""
    command = [sys.executable, "-m", "filmroll", "serve", str(model), "--store", str(store), "--port", "0", "--json"]
    command += ["--engine", engine]
    if engine == "vllm":
        command += ["--any-images", "--vllm-command", str(ROOT / ".venv-vllm/bin/vllm"), "--", *VLLM_FLAGS]
    with (work / f"{engine}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=os.environ | VLLM_ENVIRONMENT)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"{engine} did not start: {(work / f'{engine}.log').read_text()[-4000:]}")
            yield Server(json.loads(line)["url"], psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait(60)
