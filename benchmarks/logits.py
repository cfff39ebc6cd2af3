"""Peak memory and time of a micro-batch that meets a large vocabulary: all its logits at once, beside some at a time.

    python benchmarks/logits.py [--tokens 4096] [--rounds 3]

The tiny Qwen3-VL with a released model's 151,936 words, and samples of text alone, every token of them trained:
forward and backward pass, as a step makes them. Each way is a process of its own. What counts is the highest resident
memory while it works, less what the process took before; of it, the gradient of the embeddings takes as much in each.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from harness import conclude, in_process, show
from transformers import AutoConfig, AutoModelForImageTextToText

from filmroll.families import load_family
from filmroll.families.tiny import build_tiny_model
from filmroll.materialize import Materializer
from filmroll.materialize.feed import load_model
from filmroll.store import open_store
from filmroll.train.learning.forward import forward
from filmroll.train.loading.loader import Loader
from filmroll.wire.training import LossWeights, MicroBatch, TrainingSample

WORDS = 151_936
LENGTH = 512
WAYS = (128, 512, 0)
"""Logits of how many tokens are there at once; 0 stands for all."""


def build(folder: Path) -> None:
    config = AutoConfig.from_pretrained(build_tiny_model(folder))
    config.text_config.vocab_size = WORDS
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config, dtype=torch.float32).save_pretrained(folder)


def sample(number: int) -> TrainingSample:
    ids = np.random.default_rng(number).integers(0, 256, LENGTH, np.int32)
    return TrainingSample(
        name=f"s{number}",
        token_ids=ids,
        trained=np.ones(LENGTH, np.uint8),
        logprobs=np.zeros(LENGTH, np.float32),
        temperatures=np.ones(LENGTH, np.float32),
        versions=np.zeros(LENGTH, np.int32),
        advantage=1.0,
        weights=LossWeights(rl=1.0),
    )


def measure(folder: str, at_once: str, tokens: str, rounds: str) -> dict[str, float]:
    torch.set_num_threads(1)
    model, family = load_model(Path(folder)), load_family(Path(folder))
    samples = [sample(number) for number in range(int(tokens) // LENGTH)]
    batch = Loader(Materializer(open_store(Path(folder) / "images"), family), model).load(MicroBatch([samples]))
    process, seconds, before = psutil.Process(), [], psutil.Process().memory_info().rss
    for _ in range(int(rounds)):
        began = time.perf_counter()
        forward(model, family, batch, at_once=int(at_once) or int(tokens)).logprobs.mean().backward()  # type: ignore[no-untyped-call]
        seconds.append(time.perf_counter() - began)
        model.zero_grad()
    (high_water,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    return {"peak": 1024 * int(high_water) - before, "seconds": statistics.median(seconds)}


def main() -> None:
    if len(sys.argv) == 5 and not sys.argv[1].startswith("-"):
        print(json.dumps(measure(*sys.argv[1:])))
        return
    parser = argparse.ArgumentParser(description="Logits of trained tokens")
    parser.add_argument("--tokens", type=int, default=4096, help="that are trained, in one row")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        found = {way: in_process(__file__, folder, str(way), str(options.tokens), str(options.rounds)) for way in WAYS}
    show(
        f"A micro-batch of {options.tokens} trained tokens and {WORDS} words, {4 * options.tokens * WORDS / 1e6:,.0f} "
        "MB of logits",
        ("at once", "peak, MB", "seconds"),
        [(way or "all", one["peak"] / 1e6, one["seconds"]) for way, one in found.items()],
    )
    figures = {
        "logits_memory_ratio": found[512]["peak"] / found[0]["peak"],
        "logits_time_ratio": found[512]["seconds"] / found[0]["seconds"],
    }
    conclude("logits", figures, {"logits_memory_ratio": ("<=", 0.5)})


if __name__ == "__main__":
    main()
