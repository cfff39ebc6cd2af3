"""Requests with images to real vLLM and to the embedded engine: by reference, as data URIs, as tensors.

    python benchmarks/engine.py

Every way asks the same about the same pictures, half a page of flat windows and half a noisy photograph,
as PNG: in conversations of 8 turns with a new picture of 1024x1024 in each, one alone and several at once,
and in single requests with 1 and 9 pictures of 1280x720. A picture that is new to a conversation is new to
the engine.

- references: the picture goes into the store, its reference into `features.kwargs_data`.
- content parts: the same, but its address in the store goes into `content_parts`, as stock vLLM takes it.
- data URIs: the file itself, in base64, in `content_parts`.
- tensors: what the vision tower reads, in `features.kwargs_data`. The client makes it with the checkpoint's
  own image processor, transformers' with torchvision, as clients that send tensors do; but as levels of 8
  bits, as vLLM's own renderer does, where renderers 0.1.12 sends float32 values, four times as much.

What a client does for its images is timed with the rest; it does it once for each, and keeps what the
next turns send again. A server's image work is the time that its readers spent on images, as it counts
them itself; that of the other ways is not told apart, so the processor time of all its processes is shown,
in which vLLM's waiting is, because it waits by asking again and again.

Both engines run on this machine's CPU, vLLM from `.venv-vllm`, which `make test-vllm` makes. What is to be
seen is how images travel. On an accelerator a model takes milliseconds for a picture; on a CPU even the tiny
model of the tests takes most of a turn, and hides the rest. So the model here is smaller still, one layer in
tower and text each, with pictures, patches and tokens as they are in Qwen3-VL; which part of a conversation
it takes all the same is printed.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
from conversing.server import IMAGE_SECONDS, MODEL_SECONDS, ROOT, Server, serving
from conversing.ways import WAYS, Desk, Talk
from harness import conclude, show
from PIL import Image
from pixels import file, picture

from filmroll.families import load_family, tiny
from filmroll.store import open_store

TURNS, ROUNDS = 8, 3
SINGLE, SINGLE_ROUNDS = (1, 9), 4
AT_ONCE = 4
ANSWER, TEXT = 8, 24
"""Tokens of an answer, and of a message beside its picture."""
SMALL_TEXT = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
              "num_key_value_heads": 1}  # fmt: skip
SMALL_TOWER = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 1, "out_hidden_size": 64,
               "deepstack_visual_indexes": [0]}  # fmt: skip
"""As little model as vLLM serves."""
ENGINES = {"vllm": tuple(WAYS), "embedded": ("references", "content parts")}
"""The embedded engine takes no tensors, and no body of more than 8 MiB."""


@dataclass(frozen=True)
class Turn:
    seconds: float
    nbytes: int
    cpu: float
    image_work: float
    model: float
    peak: int


def converse(server: Server, desk: Desk, way: str, pictures: Sequence[bytes]) -> list[Turn]:
    """One conversation, alone, each turn by itself."""
    talk, turns = Talk(desk, WAYS[way]), []
    for number, data in enumerate(pictures):
        counts: list[Callable[[], float]] = [
            server.cpu_seconds,
            partial(server.counted, IMAGE_SECONDS),
            partial(server.counted, MODEL_SECONDS),
        ]
        before, server.peak = [count() for count in counts], 0
        started = time.perf_counter()
        nbytes = _turn(server, talk, data, number)
        seconds = time.perf_counter() - started
        cpu, image_work, model = (count() - old for count, old in zip(counts, before, strict=True))
        turns.append(Turn(seconds, nbytes, cpu, image_work, model, server.peak))
    return turns


def talk_through(server: Server, desk: Desk, way: str, pictures: Sequence[bytes]) -> None:
    """One conversation, with nothing between its turns."""
    talk = Talk(desk, WAYS[way])
    for number, data in enumerate(pictures):
        _turn(server, talk, data, number)


def _turn(server: Server, talk: Talk, data: bytes, number: int) -> int:
    """A picture is shown and answered; the bytes that went out for it."""
    talk.show(data, _words(number))
    body = talk.body(ANSWER)
    talk.tokens += server.ask(body)
    return len(body)


def first_token(server: Server, desk: Desk, way: str, pictures: Sequence[bytes]) -> float:
    """Seconds from the pictures' files to one token about all of them."""
    started = time.perf_counter()
    talk = Talk(desk, WAYS[way])
    for number, data in enumerate(pictures):
        talk.show(data, _words(number))
    server.ask(talk.body(1))
    return time.perf_counter() - started


def _words(number: int) -> list[int]:
    words: list[int] = np.random.default_rng(number).integers(32, 200, TEXT).tolist()
    return words


class Pictures:
    """New ones each time: a few noisy pictures, each with a mark of its own."""

    def __init__(self, width: int, height: int) -> None:
        self._made = [np.asarray(picture(width, height, seed)) for seed in range(3)]
        self._count = 0

    def take(self, count: int) -> list[bytes]:
        return [self._next() for _ in range(count)]

    def _next(self) -> bytes:
        self._count += 1
        marked = self._made[self._count % len(self._made)].copy()
        marked[:8, :8] = np.frombuffer(self._count.to_bytes(24), np.uint8).reshape(8, 3)
        return file(Image.fromarray(marked), "PNG")


@dataclass
class Found:
    """What was measured of one way."""

    talks: list[list[Turn]]
    talk_rates: list[float]
    singles: dict[int, list[float]]
    rates: dict[int, float]


def measure(server: Server, desk: Desk, ways: Sequence[str]) -> dict[str, Found]:
    """All ways in turn, round by round; the first round of each warms what is cached."""
    large, wide = Pictures(1024, 1024), Pictures(1280, 720)
    found = {way: Found([], [], {count: [] for count in SINGLE}, {}) for way in ways}
    for number in range(ROUNDS + 1):
        for way in ways:
            turns = converse(server, desk, way, large.take(TURNS))
            if number:
                found[way].talks.append(turns)
    for _ in range(ROUNDS):
        for way in ways:
            lots = [large.take(TURNS) for _ in range(AT_ONCE)]
            found[way].talk_rates.append(_rate(partial(talk_through, server, desk, way), lots))
    for count in SINGLE:
        for number in range(SINGLE_ROUNDS + 1):
            for way in ways:
                seconds = first_token(server, desk, way, wide.take(count))
                if number:
                    found[way].singles[count].append(seconds)
        for way in ways:
            lots = [wide.take(count) for _ in range(2 * AT_ONCE)]
            found[way].rates[count] = _rate(partial(first_token, server, desk, way), lots)
    return found


def _rate(work: Callable[[list[bytes]], object], lots: Sequence[list[bytes]]) -> float:
    """How many lots of pictures go through in a second, some at once."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        started = time.perf_counter()
        list(pool.map(work, lots))
        return len(lots) / (time.perf_counter() - started)


def _median(talks: Sequence[Sequence[Turn]], what: str, turn: int | None = None) -> float:
    """Of one turn, or of whole conversations."""
    chosen = talks if turn is None else [[talk[turn]] for talk in talks]
    return float(statistics.median(sum(getattr(one, what) for one in talk) for talk in chosen))


def report(engine: str, found: dict[str, Found]) -> None:
    columns = ["alone, s", "at once, per s", "bytes, turn 1", "bytes, turn 8", "server CPU s", "of it, turn 8"]
    rows = [
        [
            way,
            _median(one.talks, "seconds"),
            statistics.median(one.talk_rates),
            int(_median(one.talks, "nbytes", 0)),
            int(_median(one.talks, "nbytes", -1)),
            _median(one.talks, "cpu"),
            _median(one.talks, "cpu", -1),
            int(max(turn.peak for talk in one.talks for turn in talk) / 1e6),
        ]
        for way, one in found.items()
    ]
    show(
        f"{engine}: conversations of {TURNS} turns, a new 1024x1024 picture in each; alone, and {AT_ONCE} at once",
        ["", *columns, "peak RSS, MB"],
        rows,
    )
    singles = [f"{what}, {count}" for count in SINGLE for what in ("first token, s", "requests/s")]
    rows = [
        [way, *(value for count in SINGLE for value in (statistics.median(one.singles[count]), one.rates[count]))]
        for way, one in found.items()
    ]
    show(
        f"{engine}: requests with so many new 1280x720 pictures, {AT_ONCE} at once for the rates", ["", *singles], rows
    )
    work = [1000 * _median(found["references"].talks, "image_work", turn) for turn in range(TURNS)]
    print("Milliseconds of image work by turn, references: " + ", ".join(f"{value:.1f}" for value in work))
    shares = {way: _median(one.talks, "model") / _median(one.talks, "seconds") for way, one in found.items()}
    if any(shares.values()):
        print("The model's part of a conversation: " + ", ".join(f"{way} {part:.0%}" for way, part in shares.items()))
    print()


def main() -> None:
    # The clients' torchvision is that of the tests; transformers looks for it when it is imported.
    sys.path.append(str(ROOT))
    from tests.their_torchvision import make_importable

    make_importable()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        work = Path(name)
        model, images = work / "model", work / "images"
        images.mkdir()
        with patch.dict(tiny.TEXT, SMALL_TEXT), patch.dict(tiny.VISION, SMALL_TOWER):
            tiny.build_tiny_model(model)
        config = json.loads((model / "config.json").read_text())
        sides = (config[f"vision_{side}_token_id"] for side in ("start", "end"))
        desk = Desk(model, load_family(model), open_store(images), *sides)
        found = {}
        for engine, ways in ENGINES.items():
            with serving(engine, model, images, work) as server:
                found[engine] = measure(server, desk, ways)
            report(engine, found[engine])
    vllm = found["vllm"]
    size = {way: _median(one.talks, "nbytes", -1) for way, one in vllm.items()}
    rate = {way: statistics.median(one.talk_rates) for way, one in vllm.items()}
    conclude(
        "engine",
        {
            "bytes_vs_tensors": size["tensors"] / size["references"],
            "bytes_vs_data_uri": size["data URIs"] / size["references"],
            "image_work_turn8_over_turn1": _median(vllm["references"].talks, "image_work", -1)
            / _median(vllm["references"].talks, "image_work", 0),
            "rps_vs_tensors": rate["references"] / rate["tensors"],
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
