"""Runs that never ran: folders written as the orchestrator writes them."""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

Row = dict[str, Any]
START = 1_700_000_000.0
COLORS = {"A": (220, 40, 40), "B": (40, 180, 60), "C": (50, 80, 220), "D": (240, 220, 50)}


def receipt(images: int, consumed: int | None = None) -> Row:
    return {
        "referenced": images,
        "verified": images,
        "decoded": images,
        "consumed": images if consumed is None else consumed,
    }


def warmup_row(step: int) -> Row:
    return {
        "phase": "warmup",
        "step": step,
        "time": START + step,
        "loss": 2.0 / (1 + step / 8) + 0.1 * math.sin(step),
        "grad_norm": 1.0,
        "tokens": 4000,
        "images": 96,
        "trainer_receipt": receipt(96),
        "seconds": {"train": 0.4, "total": 0.5},
        "memory": {"orchestrator": 240e6, "engine": 420e6, "trainer": 900e6},
    }


def rl_row(step: int, reward: float, **changes: Any) -> Row:
    noise = random.Random(step)
    row: Row = {
        "phase": "rl",
        "step": step,
        "time": START + 100 + 2 * step,
        "version": step + 1,
        "loss": 0.02 * noise.gauss(0, 1),
        "grad_norm": 0.5 + 0.3 * noise.random(),
        "reward": reward,
        "reward_std": 0.4,
        "metrics": {"partial": min(1.0, reward + 0.1)},
        "ratio_mean": 1.0 + 0.002 * noise.gauss(0, 1),
        "ratio_max": 1.2 + 0.4 * noise.random(),
        "clip_fraction": 0.02 * noise.random(),
        "logprob_gap_mean": 3e-7 * (1 + noise.random()),
        "logprob_gap_max": 4e-6 * (1 + noise.random()),
        "mismatch_kl": 4e-13 * (1 + noise.random()),
        "truncated_fraction": 0.0,
        "reference_kl": None,
        "updated": True,
        "samples_stale": 0,
        "entropy": 1.4 - reward,
        "rollouts": 64,
        "turns": 192,
        "tokens": 9000,
        "images": 384,
        "images_unique": 40,
        "images_new": max(0, 40 - step),
        "images_per_second": 190.0 + 20 * noise.random(),
        "request_bytes": 260_000 + noise.randrange(20_000),
        "sample_bytes": 150_000 + noise.randrange(9_000),
        "image_bytes": 16_000,
        "pixel_bytes": 118_000_000,
        "engine_receipt": receipt(384),
        "trainer_receipt": receipt(192),
        "seconds": {"rollout": 1.1 + 0.2 * noise.random(), "train": 0.8, "weights": 0.06, "total": 2.0},
        "memory": {
            "orchestrator": 240e6 + 1e4 * step,
            "engine": 430e6 + 4e6 * noise.random(),
            "trainer": 910e6,
            "worker-0": 120e6,
            "worker-1": 121e6,
        },
    }
    return {**row, **changes}


@dataclass
class RunWriter:
    """Writes the parts of a run's folder that a test wants."""

    path: Path

    def config(self, **fields: Any) -> None:
        (self.path / "config.json").write_text(json.dumps(fields))

    def lines(self, name: str, rows: Sequence[Row]) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return path

    def metrics(self, rows: Sequence[Row]) -> Path:
        return self.lines("metrics.jsonl", rows)

    def events(self, *rows: Row) -> Path:
        return self.lines("events.jsonl", rows)

    def rollouts(self, step: int, rows: Sequence[Row]) -> Path:
        return self.lines(f"rollouts/step_{step:06d}.jsonl", rows)

    def image(self, color: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (100, 100)) -> Row:
        """A stored image, and its row in a rollout's table."""
        out = io.BytesIO()
        Image.new("RGB", size, color).save(out, "PNG")
        data = out.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        path = self.stored(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return {
            "sha256": digest,
            "uri": path.as_uri(),
            "media_type": "image/png",
            "width": size[0],
            "height": size[1],
            "nbytes": len(data),
            "tokens": 9,
        }

    def stored(self, digest: str) -> Path:
        return self.path / "assets" / "images" / digest[:2] / f"{digest}.png"

    def rollout(
        self, step: int, place: int = 0, *, expected: str = "ABCD", answer: str = "ABCD", **changes: Any
    ) -> Row:
        """A conversation that shows a picture for each expected letter, two a turn."""
        noise = random.Random(f"{step} {place}")
        turns: list[Row] = []
        images = [self.image(COLORS[letter]) for letter in expected]
        for begin in range(0, len(expected), 2):
            letters = expected[begin : begin + 2]
            shown = "".join("<|vision_start|>\ufffc<|vision_end|>" for _ in letters)
            ask = "Each picture is one letter: red A, green B, blue C, yellow D. " if begin == 0 else ""
            text = f"<|im_start|>user\n{shown}{ask}Which letters are these?<|im_end|>\n<|im_start|>assistant\n"
            turns.append(
                {
                    "parent": len(turns) - 1,
                    "role": "prompt",
                    "text": text,
                    "tokens": 40,
                    "version": None,
                    "images": [{"image": begin + place, "offset": 12 * place} for place in range(len(letters))],
                }
            )
            said = answer if begin + 2 >= len(expected) else letters
            texts = [*said, "<|im_end|>"]
            turns.append(
                {
                    "parent": len(turns) - 1,
                    "role": "answer",
                    "text": "".join(texts),
                    "tokens": len(texts),
                    "version": step,
                    "logprobs": [-abs(noise.gauss(0, 0.8)) for _ in texts],
                    "token_texts": texts,
                    "images": [],
                }
            )
        right = sum(one == two for one, two in zip(answer, expected, strict=False)) / max(len(answer), len(expected), 1)
        row: Row = {
            "name": f"step_{step}/prompt_{place // 8}/rollout_{place % 8}",
            "step": step,
            "reward": float(answer == expected),
            "metrics": {"partial": right},
            "expected": expected,
            "answer": answer,
            "images": images,
            "turns": turns,
        }
        return {**row, **changes}
