"""Resident memory of K rollouts of 8 turns, one 1024x1024 image a turn: filmroll beside float32 pixel_values.

    python benchmarks/rollout_memory.py

Each kind is measured in a process of its own, which holds ever more rollouts. They are rendered,
bridged and stored as a worker does it; completions are random tokens. The baseline keeps the same
rollouts with each image's pixel_values, once per image, as transformers' own processor makes them,
as long as they fit into memory. Beside both stand the figures that were published of the system
whose formats filmroll speaks; they are of whole processes, on other machines.

Request and trajectory are weighed as they are, with the tiny model's token ids, and once more with
ids of six digits, as Qwen3-VL has them: an expanded prompt in JSON is mostly its placeholder ids.
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
COUNTS = (32, 64, 128, 256)
PUBLISHED = {"pixels": (12.8, 23.2, 44.4, 86.0), "descriptors": (3.1, 3.4, 4.3, 5.8)}
"""Gigabytes at each of these counts."""
PIXEL_BYTES = TURNS * SIDE * SIDE * 3 * 4 * 2
"""Of one rollout: Qwen3-VL sees each picture twice, as two frames."""
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


def measure_ours(work: Path) -> dict[str, Any]:
    renderer = load_renderer(work / "model", open_store(work / "images"))
    play(renderer, 10**6)
    before = resident()
    held: list[tuple[Trajectory, Rendered]] = []
    grown = {}
    for count in COUNTS:
        held += [play(renderer, number) for number in range(len(held), count)]
        grown[str(count)] = resident() - before
    trajectory, prompt = held[0]
    weights = {}
    for shift in (0, SIX_DIGITS):
        weights[f"request{shift}"] = request_bytes(prompt, shift)
        weights[f"trajectory{shift}"] = trajectory_bytes(trajectory, shift)
    return {"process": before, "grown": grown, **weights}


def measure_pixels(work: Path) -> dict[str, Any]:
    """The same rollouts, each image's pixel_values with it, at every count for which there is memory."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(work / "model", backend="pil")
    renderer = load_renderer(work / "model", open_store(work / "images"))
    play(renderer, 10**6)
    before = resident()
    held: list[Any] = []
    grown = {}
    for count in COUNTS:
        if (count - len(held)) * PIXEL_BYTES > psutil.virtual_memory().available * 2 / 5:
            break
        for number in range(len(held), count):
            trajectory, prompt = play(renderer, number)
            pictures = [Image.open(io.BytesIO(renderer.store.read(image.image))) for image in trajectory.images]
            pixels = [processor(one, return_tensors="np")["pixel_values"] for one in pictures]
            held.append((trajectory, prompt, pixels))
        grown[str(count)] = resident() - before
    return {"process": before, "grown": grown}


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


def show_memory(ours: dict[str, Any], pixels: dict[str, Any]) -> None:
    def whole(measured: dict[str, Any], count: int) -> object:
        grown = measured["grown"].get(str(count))
        return "-" if grown is None else (measured["process"] + grown) / 1e9

    show(
        f"Resident GB of a process with K rollouts: {TURNS} turns, one {SIDE}x{SIDE} image a turn",
        ("K", "pixels, published", "pixels, here", "descriptors, published", "filmroll", "filmroll, KB a rollout more"),
        [
            (
                count,
                PUBLISHED["pixels"][place],
                whole(pixels, count),
                PUBLISHED["descriptors"][place],
                whole(ours, count),
                ours["grown"][str(count)] / count / 1e3,
            )
            for place, count in enumerate(COUNTS)
        ],
    )


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps({"ours": measure_ours, "pixels": measure_pixels}[sys.argv[1]](Path(sys.argv[2]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        build_tiny_model(Path(folder) / "model")
        ours = in_process(__file__, "ours", folder)
        pixels = in_process(__file__, "pixels", folder)
    show_memory(ours, pixels)
    show(
        "On the wire and on disk",
        ("what", "KB", "KB with six-digit ids"),
        [
            (name, ours[f"{what}0"] / 1e3, ours[f"{what}{SIX_DIGITS}"] / 1e3)
            for name, what in (("request body of turn 8", "request"), ("stored trajectory", "trajectory"))
        ],
    )
    figures = {
        "kb_per_rollout_k256": round(ours["grown"]["256"] / 256 / 1e3, 2),
        "request_kb_turn8": round(ours["request0"] / 1e3, 2),
        "request_kb_turn8_six_digit_ids": round(ours[f"request{SIX_DIGITS}"] / 1e3, 2),
        "trajectory_kb": round(ours[f"trajectory{SIX_DIGITS}"] / 1e3, 2),
    }
    goals = {
        "kb_per_rollout_k256": ("<=", 60.0),
        "request_kb_turn8": ("<=", 64.0),
        "trajectory_kb": ("<=", 40.0),
    }
    measured = [count for count in COUNTS if str(count) in pixels["grown"]]
    if measured:
        largest = str(measured[-1])
        figures[f"pixels_over_ours_k{largest}"] = round(pixels["grown"][largest] / max(ours["grown"][largest], 1), 1)
        goals[f"pixels_over_ours_k{largest}"] = (">=", 800.0)
    conclude("rollout_memory", figures, goals)


if __name__ == "__main__":
    main()
