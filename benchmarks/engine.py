"""Requests with images to real vLLM and to the embedded engine: by reference, as data URIs, as tensors.

    python benchmarks/engine.py

Both engines serve the tiny model on this machine's CPU, vLLM from `.venv-vllm`, which `make test-vllm`
makes. Every way asks the same about the same pictures, half a page of flat windows and half a noisy
photograph, as PNG: in conversations of 8 turns with a new picture of 1024x1024 in each, and in single
requests with 1 and 9 pictures of 1280x720. A picture that is new to a conversation is new to the engine.

- references: the picture goes into the store, its reference into `features.kwargs_data`.
- content parts: the same, but its address in the store goes into `content_parts`, as stock vLLM takes it.
- data URIs: the file itself, in base64, in `content_parts`.
- tensors: what the vision tower reads, in `features.kwargs_data`. The client makes it with filmroll's
  own loops, faster than transformers would, as levels of 8 bits, a quarter of what float32 values weigh.

What a client does for its images is timed with the rest; it does it once for each, and keeps what the
next turns send again. A server's image work is the time that its readers spent on images, as it counts
them itself; that of the other ways is not told apart, so the processor time of all its processes is shown.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
import psutil
from harness import conclude, show
from pixels import file, picture

from filmroll.families import Family, load_family
from filmroll.families.tiny import build_tiny_model
from filmroll.pixels.decode import decode
from filmroll.store import Store, open_store
from filmroll.wire.reference import write_reference

ROOT = Path(__file__).parents[1]
TURNS, ROUNDS = 8, 3
SINGLE, SINGLE_ROUNDS = (1, 9), 4
AT_ONCE = 4
ANSWER, TEXT = 8, 24
"""Tokens of an answer, and of a message beside its picture."""
RAW_VIEW = 3
"""How vLLM marks an array's bytes."""
VLLM_FLAGS = ("--dtype", "float32", "--max-model-len", "12288", "--enforce-eager", "--max-num-seqs", "8",
              "--kv-cache-memory-bytes", str(512 << 20), "--limit-mm-per-prompt", '{"image": 16}')  # fmt: skip
VLLM_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1"}


@dataclass(frozen=True)
class Desk:
    """What requests are made with."""

    family: Family
    store: Store
    begin: int
    end: int


@dataclass(frozen=True)
class Sent:
    """A picture's part of a request, kept from turn to turn."""

    name: str
    tokens: int
    part: Any


def by_reference(desk: Desk, data: bytes) -> Sent:
    descriptor = desk.family.describe(desk.store.put(data))
    return Sent(descriptor.image.sha256, descriptor.tokens, write_reference(descriptor))


def by_address(desk: Desk, data: bytes) -> Sent:
    image = desk.store.put(data)
    return Sent("", 1, {"type": "image_url", "url": image.uri, "uuid": f"{image.sha256}-{desk.family.recipe}"})


def as_data_uri(_desk: Desk, data: bytes) -> Sent:
    return Sent("", 1, {"type": "image_url", "url": f"data:image/png;base64,{base64.b64encode(data).decode()}"})


def as_tensors(desk: Desk, data: bytes) -> Sent:
    rgb = decode(data, max_pixels=1 << 26)
    layout = desk.family.layout(rgb.shape[1], rgb.shape[0])
    levels = desk.family.pixels([rgb], "uint8")
    patches = levels["pixel_values"]
    # The tower reads two temporal copies of a patch; filmroll keeps one.
    twice = np.repeat(patches.reshape(len(patches), 3, 1, -1), 2, axis=2).reshape(len(patches), -1)
    flat = {"keep_on_cpu": False, "slices": [[[0, len(twice), None]]], "dim": 0}
    item = {
        "pixel_values": {"data": _array(twice), "field": ["flat", flat]},
        "image_grid_thw": {"data": _array(levels["image_grid_thw"][0]), "field": ["batched", {"keep_on_cpu": True}]},
    }
    name = f"tensors-{time.monotonic_ns()}"
    return Sent(name, layout.tokens, base64.b64encode(msgspec.msgpack.encode(item)).decode())


def _array(values: np.ndarray[Any, Any]) -> list[Any]:
    return [str(values.dtype), list(values.shape), msgspec.msgpack.Ext(RAW_VIEW, values.tobytes())]


@dataclass
class Talk:
    """A conversation that is carried one way."""

    desk: Desk
    carry: Callable[[Desk, bytes], Sent]
    tokens: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    images: list[Sent] = field(default_factory=list)

    def show(self, data: bytes, words: Sequence[int]) -> None:
        sent = self.carry(self.desk, data)
        self.tokens += [*words, self.desk.begin]
        self.offsets.append(len(self.tokens))
        self.tokens += [self.desk.family.placeholders.image] * sent.tokens + [self.desk.end]
        self.images.append(sent)

    def body(self, answer: int) -> bytes:
        bias = {str(token): -1e9 for token in self.desk.family.placeholders.unsampled}
        params = {"max_tokens": answer, "min_tokens": answer, "ignore_eos": True, "temperature": 0, "logprobs": 1}
        body: dict[str, Any] = {"token_ids": self.tokens, "sampling_params": {**params, "logit_bias": bias}}
        if isinstance(self.images[0].part, str):
            spans = zip(self.offsets, self.images, strict=True)
            body["features"] = {
                "mm_hashes": {"image": [one.name for one in self.images]},
                "mm_placeholders": {"image": [{"offset": at, "length": one.tokens} for at, one in spans]},
                "kwargs_data": {"image": [one.part for one in self.images]},
            }
        else:
            body["content_parts"] = [one.part for one in self.images]
        return msgspec.json.encode(body)


WAYS = {"references": by_reference, "content parts": by_address, "data URIs": as_data_uri, "tensors": as_tensors}
ENGINES = {"vllm": tuple(WAYS), "embedded": ("references", "content parts")}
"""The embedded engine takes no tensors, and no body of more than 8 MiB."""


class Server:
    """A running engine, and what it costs."""

    def __init__(self, url: str, process: psutil.Process) -> None:
        self._host = urlsplit(url).netloc
        self._process = process
        self._local = threading.local()
        self.peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def ask(self, body: bytes) -> list[int]:
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection(self._host, timeout=600)
        connection = self._local.connection
        connection.request("POST", "/inference/v1/generate", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise SystemExit(f"the engine answered {answer.status}: {content[:2000]!r}")
        tokens: list[int] = json.loads(content)["choices"][0]["token_ids"]
        return tokens

    def cpu_seconds(self) -> float:
        times = [one.cpu_times() for one in self._family()]
        return sum(one.user + one.system for one in times)

    def image_seconds(self) -> float:
        """What its readers spent on reading, verifying and decoding images."""
        connection = http.client.HTTPConnection(self._host, timeout=60)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(IMAGE_SECONDS))

    def _family(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def _watch(self) -> None:
        while True:
            try:
                self.peak = max(self.peak, sum(one.memory_info().rss for one in self._family()))
            except psutil.Error:
                return
            time.sleep(0.1)


IMAGE_SECONDS = ("filmroll_engine_image_read_seconds_sum", "filmroll_engine_image_decode_seconds_sum")


@contextmanager
def serving(engine: str, model: Path, store: Path, work: Path) -> Iterator[Server]:
    """An engine as `filmroll serve` starts it."""
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


@dataclass(frozen=True)
class Turn:
    seconds: float
    nbytes: int
    cpu: float
    image_work: float
    peak: int


def converse(server: Server, desk: Desk, way: str, pictures: Sequence[bytes]) -> list[Turn]:
    """One conversation, alone, each turn by itself."""
    talk, turns = Talk(desk, WAYS[way]), []
    for number, data in enumerate(pictures):
        cpu, image_work, server.peak = server.cpu_seconds(), server.image_seconds(), 0
        started = time.perf_counter()
        talk.show(data, _words(number))
        body = talk.body(ANSWER)
        talk.tokens += server.ask(body)
        seconds = time.perf_counter() - started
        cpu, image_work = server.cpu_seconds() - cpu, server.image_seconds() - image_work
        turns.append(Turn(seconds, len(body), cpu, image_work, server.peak))
    return turns


def first_token(server: Server, desk: Desk, way: str, pictures: Sequence[bytes]) -> float:
    """Seconds from the pictures' files to one token about all of them."""
    started = time.perf_counter()
    talk = Talk(desk, WAYS[way])
    for number, data in enumerate(pictures):
        talk.show(data, _words(number))
    server.ask(talk.body(1))
    return time.perf_counter() - started


def _words(number: int) -> list[int]:
    return np.random.default_rng(number).integers(32, 200, TEXT).tolist()


class Pictures:
    """New ones each time: a few noisy pictures, each with a mark of its own."""

    def __init__(self, width: int, height: int) -> None:
        self._made = [np.asarray(picture(width, height, seed)) for seed in range(3)]
        self._count = 0

    def take(self, count: int) -> list[bytes]:
        return [self._next() for _ in range(count)]

    def _next(self) -> bytes:
        from PIL import Image

        self._count += 1
        marked = self._made[self._count % len(self._made)].copy()
        marked[:8, :8] = np.frombuffer(self._count.to_bytes(24), np.uint8).reshape(8, 3)
        return file(Image.fromarray(marked), "PNG")


def measure(server: Server, desk: Desk, ways: Sequence[str]) -> dict[str, dict[str, Any]]:
    """All ways in turn, round by round; the first round of each warms what is cached."""
    large, wide = Pictures(1024, 1024), Pictures(1280, 720)
    found: dict[str, dict[str, Any]] = {
        way: {"talks": [], **{count: [] for count in SINGLE}, "rates": {}} for way in ways
    }
    for number in range(ROUNDS + 1):
        for way in ways:
            turns = converse(server, desk, way, large.take(TURNS))
            if number:
                found[way]["talks"].append(turns)
    for count in SINGLE:
        for number in range(SINGLE_ROUNDS + 1):
            for way in ways:
                seconds = first_token(server, desk, way, wide.take(count))
                if number:
                    found[way][count].append(seconds)
        for way in ways:
            lots = [wide.take(count) for _ in range(2 * AT_ONCE)]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                started = time.perf_counter()
                list(pool.map(lambda lot, way=way: first_token(server, desk, way, lot), lots))
            found[way]["rates"][count] = len(lots) / (time.perf_counter() - started)
    return found


def _median(talks: Sequence[Sequence[Turn]], what: str, turn: int | None = None) -> float:
    """Of one turn, or of whole conversations."""
    chosen = talks if turn is None else [[talk[turn]] for talk in talks]
    return statistics.median(sum(getattr(one, what) for one in talk) for talk in chosen)


def report(engine: str, found: dict[str, dict[str, Any]]) -> None:
    header = ["", "s a conversation", "bytes, turn 1", "bytes, turn 8", "server CPU s", "of it, turn 8", "peak RSS, MB"]
    rows = [
        [
            way,
            _median(one["talks"], "seconds"),
            _median(one["talks"], "nbytes", 0),
            _median(one["talks"], "nbytes", -1),
            _median(one["talks"], "cpu"),
            _median(one["talks"], "cpu", -1),
            max(turn.peak for talk in one["talks"] for turn in talk) / 1e6,
        ]
        for way, one in found.items()
    ]
    show(f"{engine}: conversations of {TURNS} turns, a new 1024x1024 picture in each", header, rows)
    singles = [f"{what}, {count}" for count in SINGLE for what in ("first token, s", "requests/s")]
    rows = [
        [way, *(value for count in SINGLE for value in (statistics.median(one[count]), one["rates"][count]))]
        for way, one in found.items()
    ]
    show(
        f"{engine}: requests with so many new 1280x720 pictures, {AT_ONCE} at once for the rates", ["", *singles], rows
    )
    work = [1000 * _median(found["references"]["talks"], "image_work", turn) for turn in range(TURNS)]
    print("Milliseconds of image work by turn, references: " + ", ".join(f"{value:.1f}" for value in work) + "\n")


def main() -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        work = Path(name)
        (work / "images").mkdir()
        build_tiny_model(work / "model")
        config = json.loads((work / "model/config.json").read_text())
        desk = Desk(
            load_family(work / "model"),
            open_store(work / "images"),
            config["vision_start_token_id"],
            config["vision_end_token_id"],
        )
        found = {}
        for engine, ways in ENGINES.items():
            with serving(engine, work / "model", work / "images", work) as server:
                found[engine] = measure(server, desk, ways)
            report(engine, found[engine])
    vllm = {way: one["talks"] for way, one in found["vllm"].items()}
    size = {way: _median(talks, "nbytes", -1) for way, talks in vllm.items()}
    conclude(
        "engine",
        {
            "bytes_vs_tensors": size["tensors"] / size["references"],
            "bytes_vs_data_uri": size["data URIs"] / size["references"],
            "image_work_turn8_over_turn1": _median(vllm["references"], "image_work", -1)
            / _median(vllm["references"], "image_work", 0),
            "rps_vs_tensors": _median(vllm["tensors"], "seconds") / _median(vllm["references"], "seconds"),
        },
        {
            "bytes_vs_tensors": (">=", 1000),
            "bytes_vs_data_uri": (">=", 100),
            "image_work_turn8_over_turn1": ("<=", 1.25),
            "rps_vs_tensors": (">=", 1.5),
        },
    )


if __name__ == "__main__":
    main()
