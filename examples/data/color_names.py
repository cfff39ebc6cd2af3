"""Makes a small data set for `filmroll sft`: solid pictures and what their colours are called.

    python examples/data/color_names.py [FOLDER] [ROWS] [--blank]

The folder is runs/color-names-data unless another is named. Writes train.jsonl, held_out.jsonl and the pictures
beside them. With --blank every picture is the same grey: the control, from which no name can be learnt.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from PIL import Image

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 220, 50),
    "purple": (140, 50, 170),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "orange": (250, 140, 30),
}
QUESTION = "What colour is this?"


def make(folder: Path, rows: int = 512, *, blank: bool = False) -> None:
    """One row in eight is held out; its shade is in no other row."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    with (folder / "train.jsonl").open("w") as train, (folder / "held_out.jsonl").open("w") as held_out:
        for number in range(rows):
            name = draw.choice(list(COLORS))
            shade = tuple(min(255, max(0, level + draw.randint(-12, 12))) for level in COLORS[name])
            file = f"pictures/{number}.png"
            Image.new("RGB", (64, 64), (128, 128, 128) if blank else shade).save(folder / file)
            question = [{"type": "image_url", "image_url": {"url": file}}, {"type": "text", "text": QUESTION}]
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": name}]
            (train if number % 8 else held_out).write(json.dumps({"messages": messages}) + "\n")


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--blank"] or ["runs/color-names-data"]
    make(Path(words[0]), *map(int, words[1:2]), blank="--blank" in sys.argv)
    print(f"{words[0]}/train.jsonl")
