"""Resident memory of K rollouts of 8 turns, one 1024x1024 image a turn: filmroll beside float32 pixel_values.

    python benchmarks/rollout_memory.py

Each measurement is a process of its own. The rollouts are rendered, bridged and stored as a worker
does it; completions are random tokens. The baseline keeps the same rollouts with each image's
pixel_values, once per image, as transformers' own processor makes them. Request and trajectory are
weighed as they are, with the tiny model's token ids, and once more with ids of six digits, as
Qwen3-VL has them: an expanded prompt in JSON is mostly its placeholder ids.
"""

from __future__ import annotations

import copy
import gc
import io
import json
import os
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
from harness import conclude, in_process, show
from PIL import Image, ImageDraw

from filmroll.families.tiny import build_tiny_model
from filmroll.render import Rendered, load_renderer
from filmroll.rollout.client import generate_request
from filmroll.rollout.trajectory import ROOT, Trajectory
from filmroll.store import open_store
from filmroll.wire.generate import SamplingParams, encode
from filmroll.wire.packed import pack

TURNS, SIDE, ANSWER = 8, 1024, 48
SIX_DIGITS = 150_000
"""Added to every token id, for ids as long as those of Qwen3-VL."""


def screenshot(seed: int) -> bytes:
    """A distinct picture of windows and lines, about as heavy as a plain web page."""
    draw_from = random.Random(seed)
    picture = Image.new("RGB", (SIDE, SIDE), (245, 245, 245))
    draw = ImageDraw.Draw(picture)
    for _ in range(60):
        left, top = draw_from.randrange(SIDE), draw_from.randrange(SIDE)
        color = tuple(draw_from.randrange(256) for _ in range(3))
        draw.rectangle((left, top, left + draw_from.randrange(300), top + draw_from.randrange(60)), fill=color)
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def message(rollout: int, turn: int) -> dict[str, Any]:
    source = screenshot(rollout * TURNS + turn)
    text = {"type": "text", "text": "This is the page after your last action. What do you do next?"}
    return {"role": "user", "content": [{"type": "image", "image": source}, text]}


def play(renderer: Any, rollout: int) -> tuple[Trajectory, Rendered]:
    """One rollout as a worker plays it, with random completions."""
    draw = random.Random(rollout)
    trajectory = Trajectory(f"rollout_{rollout}", renderer.family.placeholders.pad)
    prompt = renderer.render([message(rollout, 0)])
    node = trajectory.add_prompt(ROOT, prompt.logical, prompt.images)
    for turn in range(1, TURNS):
        said = [draw.randrange(97, 122) for _ in range(ANSWER)] + renderer.stop_token_ids[:1]
        logprobs = [-draw.random() for _ in said]
        node = trajectory.add_sampled(node, said, logprobs, temperature=1.0, version=turn, finish_reason="stop")
        longer = renderer.bridge(prompt, said, [message(rollout, turn)])
        new_tokens = longer.logical[len(prompt.logical) + len(said) :]
        node = trajectory.add_prompt(node, new_tokens, longer.images[len(prompt.images) :])
        prompt = longer
    return trajectory, prompt


def measure_ours(work: Path, count: int) -> dict[str, float]:
    renderer = load_renderer(work / "model", open_store(work / f"images-{count}"))
    play(renderer, 10**6)
    before = resident()
    held = [play(renderer, number) for number in range(count)]
    grown = resident() - before
    trajectory, prompt = held[0]
    weights = {
        f"{what}{shift}": weigh(value, shift)
        for shift in (0, SIX_DIGITS)
        for what, weigh, value in (("request", request_bytes, prompt), ("trajectory", trajectory_bytes, trajectory))
    }
    return {"bytes": grown / count, "total": grown, **weights}


def measure_pixels(work: Path, count: int) -> dict[str, float]:
    """The same rollouts, each image's pixel_values with it."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(work / "model", backend="pil")
    renderer = load_renderer(work / "model", open_store(work / f"images-{count}"))
    play(renderer, 10**6)
    before = resident()
    held = []
    for number in range(count):
        trajectory, prompt = play(renderer, number)
        pixels = [
            processor(Image.open(io.BytesIO(renderer.store.read(image.image))), return_tensors="np")["pixel_values"]
            for image in trajectory.images
        ]
        held.append((trajectory, prompt, pixels))
    grown = resident() - before
    return {"bytes": grown / count, "total": grown}


def resident() -> int:
    gc.collect()
    return int(psutil.Process(os.getpid()).memory_info().rss)


def request_bytes(prompt: Rendered, shift: int) -> int:
    family = copy.copy(prompt.family)
    family.placeholders = replace(family.placeholders, image=family.placeholders.image + shift)
    shifted = Rendered([token + shift for token in prompt.logical], prompt.images, family)
    sampling = SamplingParams(max_tokens=512, stop_token_ids=[151645, 151643])
    return len(encode(generate_request(shifted, sampling, model="Qwen/Qwen3-VL-4B-Instruct", request_id="r" * 32)))


def trajectory_bytes(trajectory: Trajectory, shift: int) -> int:
    nodes = [
        msgspec.structs.replace(node, token_ids=(node.token_ids + shift).astype(np.int32)) for node in trajectory.nodes
    ]
    return len(pack(msgspec.structs.replace(trajectory, nodes=nodes)))


def main() -> None:
    if len(sys.argv) == 4:
        what, work, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
        print(json.dumps({"ours": measure_ours, "pixels": measure_pixels}[what](work, count)))
        return
    with tempfile.TemporaryDirectory() as folder:
        build_tiny_model(Path(folder) / "model")
        ours = {count: in_process(__file__, "ours", folder, str(count)) for count in (32, 256)}
        pixels = in_process(__file__, "pixels", folder, "32")
    show(
        f"Resident memory of K rollouts: {TURNS} turns, one {SIDE}x{SIDE} image a turn",
        ("what is kept", "K", "MB per rollout", "MB in all"),
        [
            ("float32 pixel_values", 32, pixels["bytes"] / 1e6, pixels["total"] / 1e6),
            ("filmroll references", 32, ours[32]["bytes"] / 1e6, ours[32]["total"] / 1e6),
            ("filmroll references", 256, ours[256]["bytes"] / 1e6, ours[256]["total"] / 1e6),
        ],
    )
    show(
        "On the wire and on disk",
        ("what", "KB", "KB with six-digit ids"),
        [
            (name, ours[256][f"{what}0"] / 1e3, ours[256][f"{what}{SIX_DIGITS}"] / 1e3)
            for name, what in (("request body of turn 8", "request"), ("stored trajectory", "trajectory"))
        ],
    )
    figures = {
        "kb_per_rollout_k256": round(ours[256]["bytes"] / 1e3, 2),
        "pixels_over_ours_k32": round(pixels["bytes"] / max(ours[32]["bytes"], 1), 1),
        "request_kb_turn8": round(ours[256]["request0"] / 1e3, 2),
        "request_kb_turn8_six_digit_ids": round(ours[256][f"request{SIX_DIGITS}"] / 1e3, 2),
        "trajectory_kb": round(ours[256][f"trajectory{SIX_DIGITS}"] / 1e3, 2),
    }
    goals = {
        "kb_per_rollout_k256": ("<=", 250.0),
        "pixels_over_ours_k32": (">=", 800.0),
        "request_kb_turn8": ("<=", 64.0),
        "trajectory_kb": ("<=", 100.0),
    }
    conclude("rollout_memory", figures, goals)


if __name__ == "__main__":
    main()
