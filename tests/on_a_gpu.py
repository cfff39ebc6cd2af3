"""What a GPU has to show: the equality tests there, then the training benchmark in bfloat16.

    python -m tests.on_a_gpu [DEVICE]

What they print is kept in benchmarks/results, by day and by the GPU's name. On a device that is no GPU this is a
rehearsal, which shows that the tests and the benchmark run; it keeps nothing.
"""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from filmroll.errors import ConfigError
from filmroll.materialize.device import usable_device

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TESTS = ["-m", "pytest", "-m", "gpu", "-rs", "--show-capture=no", "--timeout", "900", "tests/train"]
BENCHMARK = ["benchmarks/training.py", "--dtype", "bfloat16"]
SIZES = {"training": ["--size", "tiny"], "training-580m": ["--size", "580m"]}
REHEARSED = {"training": ["--size", "tiny", "--samples", "8", "--rounds", "1"]}


def main(device: str) -> int:
    try:
        place = usable_device(device)
    except ConfigError as error:
        sys.exit(f"Nothing was tested on a GPU: {error}")
    if place.type == "cuda":
        name = torch.cuda.get_device_name(place)
        said, sizes = f"On {name}, torch {torch.__version__}", SIZES
    else:
        name = ""
        said, sizes = f"A REHEARSAL on {device}: it says nothing of a GPU, and nothing of it is kept.", REHEARSED
    print(said, flush=True)
    made = {what: printed(arguments, device) for what, arguments in programs(device, sizes).items()}
    if name:
        keep(name, made)
    print(said)
    if failed := [what for what, text in made.items() if text is None]:
        print(f"FAILED: {', '.join(failed)}")
    return bool(failed)


def programs(device: str, sizes: dict[str, list[str]]) -> dict[str, list[str]]:
    """The arguments of each, by what its print is called."""
    return {"equalities": TESTS} | {what: [*BENCHMARK, "--device", device, *size] for what, size in sizes.items()}


def printed(arguments: list[str], device: str) -> str | None:
    """What the program prints, told while it does; nothing where it fails."""
    environment = os.environ | {"FILMROLL_TEST_DEVICE": device, "PYTHONUNBUFFERED": "1"}
    command, lines = [sys.executable, *arguments], []
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return None if process.returncode else "".join(lines)


def keep(name: str, made: dict[str, str | None]) -> None:
    day, slug = datetime.datetime.now(datetime.UTC).date(), re.sub(r"\W+", "-", name.lower())
    for what, text in made.items():
        if text is not None:
            file = RESULTS / f"{day}-{what}-{slug}.txt"
            file.write_text(text)
            print(f"kept {file.relative_to(ROOT)}; it wants a line in benchmarks/results/README.md")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:] or ["cuda"]))
