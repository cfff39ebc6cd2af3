"""Training steps: how long the model waits for images, what seeing each once is worth, memory, and packing.

    python benchmarks/training.py [--device cuda] [--dtype bfloat16] [--size 580m] [--samples 32] [--rounds 5]

The tiny Qwen3-VL, or one of 580 million parameters (`stepping/larger.py`), which a GPU is busy with; rollouts of one
turn that show a picture of 448x448 or 1024x1024 pixels, JPEG files in a local store. Each part takes its ways in
turn, so whatever else the machine does is spread over all. A step's time is from a device that has nothing to do to
one that has nothing left to do.

- Waiting: steps over pictures that nobody has seen, made ahead by threads, and made when a micro-batch asks.
  What counts is that the host waits; a GPU may have work of the micro-batch before it meanwhile.
- Seeing: groups of 1, 4, 8 and 16 rollouts that share their picture. The vision tower sees each distinct
  one, or, in the plain forward, one for each place. Pictures are in the cache by then.
- Memory: 64 pictures as levels, and as float32, where they wait for the model: on the host (`pixel_memory.py`). On a
  GPU also what goes there, what it becomes, and the most that a step takes.
- Packing: rollouts of one to eight turns in the order in which they end, packed and dealt out to four ranks by
  `train/batches/plan.py`, and as they come, each rank in its turn. A rank's cost is its tokens, padding too, and
  patches.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from harness import conclude, show
from packing import rollout
from pixel_memory import peaks
from pixels import file, picture
from stepping.larger import build_larger_model
from stepping.taken import Taken, step

from filmroll.families import Family, load_family
from filmroll.families.tiny import build_tiny_model
from filmroll.materialize import Materializer
from filmroll.materialize.feed import picture_inputs
from filmroll.materialize.sheet import Sheet
from filmroll.store import Store, open_store
from filmroll.train.batches.bins import Bin, Costs, Limits
from filmroll.train.batches.plan import deal, plan
from filmroll.train.learning.trainer import Trainer
from filmroll.train.step import TrainerConfig
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.training import MicroBatch, TrainingSample

SIDES = (448, 1024)
GROUPS = (1, 4, 8, 16)
RANKS, TURNS = 4, 8
TOKENS, PATCHES = 2048, 2048


class Bench:
    """A model, a store, and pictures that are never shown twice."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        build = {"tiny": build_tiny_model, "580m": build_larger_model}[options.size]
        self.model = build(folder / "model")
        self.store: Store = open_store(folder / "images")
        self.rounds, self.samples = options.rounds, options.samples
        self.config = TrainerConfig(
            threads=options.threads, device=options.device, dtype=options.dtype, max_tokens=16384, max_patches=65536
        )
        self.gpu = options.device.startswith("cuda")
        self._pictures = iter(range(10**9))

    def family(self) -> Family:
        return load_family(self.model)

    def trainer(self, family: Family, config: TrainerConfig) -> Trainer:
        return Trainer(self.model, Materializer(self.store, family), config)

    def album(self, family: Family, side: int, count: int) -> list[ImageDescriptor]:
        return [
            family.describe(self.store.put(file(picture(side, side, next(self._pictures)), "JPEG")))
            for _ in range(count)
        ]

    def group(self, family: Family, side: int, size: int) -> list[TrainingSample]:
        """Rollouts of one turn that share their picture."""
        album = self.album(family, side, 1)
        return [rollout(family, f"{side}/{number}", 1, album) for number in range(size)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def waiting(bench: Bench) -> dict[str, float]:
    """The share of a step in which the model waits, with images made ahead and without; the larger of both sizes."""
    family = bench.family()
    ways = {
        "made ahead": bench.trainer(family, bench.config),
        "made when asked for": bench.trainer(family, bench.config.model_copy(update={"prefetch_mb": 0, "readers": 1})),
    }
    rows: list[list[object]] = []
    shares: dict[str, list[float]] = {way: [] for way in ways}
    for side in SIDES:
        taken: dict[str, list[Taken]] = {way: [] for way in ways}
        for number in range(bench.rounds + 1):
            for way, trainer in ways.items():
                samples = [one for _ in range(bench.samples // 8) for one in bench.group(family, side, 8)]
                done = step(trainer, plan(samples, family, _small(bench.config, side)).micro_batches)
                if number:  # the first one finds out how fast the machine is
                    taken[way].append(done)
        for way, steps in taken.items():
            share = median([one.report.image_wait / one.seconds for one in steps])
            shares[way].append(share)
            wait, seconds = median([one.report.image_wait for one in steps]), median([one.seconds for one in steps])
            rows.append([f"{side}x{side}, {way}", steps[0].report.micro_batches, 1000 * wait, 1000 * seconds, share])
    show(
        f"A step of {bench.samples} samples, groups of 8",
        ["", "micro-batches", "waited, ms", "step, ms", "share"],
        rows,
    )
    return {
        "image_wait_share": max(shares["made ahead"]),
        "image_wait_share_on_demand": max(shares["made when asked for"]),
    }


def _small(config: TrainerConfig, side: int) -> TrainerConfig:
    """Micro-batches of one group, as a model of usual size has them."""
    tokens = 8 * ((side // 32) ** 2 + 64)
    return config.model_copy(update={"max_tokens": tokens})


def seeing(bench: Bench) -> dict[str, float]:
    """How much faster a step is, and how much of it the vision tower takes, by the size of the groups."""
    once, plain = bench.family(), bench.family()
    plain.forward = replace(plain.forward, shares=False)
    ways = {way: bench.trainer(family, bench.config) for way, family in (("once", once), ("plain", plain))}
    rows: list[list[object]] = []
    figures: dict[str, float] = {}
    for size in GROUPS:
        samples = [one for _ in range(max(1, 16 // size)) for one in bench.group(once, SIDES[0], size)]
        batches = plan(samples, once, bench.config).micro_batches
        taken: dict[str, list[Taken]] = {way: [] for way in ways}
        for number in range(bench.rounds + 1):
            for way, trainer in ways.items():
                done = step(trainer, batches)
                if number:
                    taken[way].append(done)
        seconds = {way: median([one.seconds for one in each]) for way, each in taken.items()}
        shares = {way: median([one.tower / one.seconds for one in each]) for way, each in taken.items()}
        towers = {way: median([one.tower for one in each]) for way, each in taken.items()}
        peaks = {way: max(one.peak for one in each) / 1e6 for way, each in taken.items()}
        speedup, fewer = seconds["plain"] / seconds["once"], towers["plain"] / towers["once"]
        row: list[object] = [
            size,
            *(1000 * seconds[way] for way in ways),
            speedup,
            *(shares[way] for way in ways),
            fewer,
        ]
        rows.append([*row, *(peaks[way] for way in ways)] if bench.gpu else row)
        figures[f"step_speedup_g{size}"] = speedup
        figures[f"tower_speedup_g{size}"] = fewer
        if bench.gpu:
            figures[f"device_peak_ratio_g{size}"] = peaks["once"] / peaks["plain"]
    header = ["group", "once, ms", "plain, ms", "times faster", "tower once", "tower plain", "tower's time, times"]
    if bench.gpu:
        header += ["memory once, MB", "memory plain"]
    show("A step of 16 samples at 448x448; the tower's share of it is of its forward alone", header, rows)
    return figures


def packing(bench: Bench) -> dict[str, float]:
    """Tokens by area, and the costliest rank by the mean one."""
    family, config = bench.family(), bench.config.model_copy(update={"max_tokens": TOKENS, "max_patches": PATCHES})
    costs, limits = Costs(family), Limits(TOKENS, PATCHES, family.forward.packs)
    samples = []
    for group in range(16):
        album = bench.album(family, 100, 2 * TURNS)
        samples += [rollout(family, f"{group}/{number}", random.randint(1, TURNS), album) for number in range(8)]
    random.shuffle(samples)
    came = as_they_come(samples, costs, limits)
    ways = {
        "packed": deal(plan(samples, family, config).micro_batches, Costs(family), RANKS),
        "first come": [came[rank::RANKS] for rank in range(RANKS)],
    }
    rows: list[list[object]] = []
    found: dict[str, tuple[float, float]] = {}
    for way, ranks in ways.items():
        batches = [one for rank in ranks for one in rank]
        tokens = sum(one.tokens for one in samples)
        spent = [sum(one.area + costs.encoded(one) for one in rank) for rank in ranks]
        found[way] = tokens / sum(one.area for one in batches), max(spent) / (sum(spent) / RANKS)
        patches = sum(costs.encoded(one) for one in batches)
        rows.append([way, len(batches), found[way][0], patches, found[way][1]])
    show(
        f"{len(samples)} rollouts of 1 to {TURNS} turns, {RANKS} ranks",
        ["", "micro-batches", "tokens / area", "patches", "costliest rank / mean"],
        rows,
    )
    return {
        "packing_efficiency": found["packed"][0],
        "packing_efficiency_first_come": found["first come"][0],
        "imbalance": found["packed"][1],
        "imbalance_first_come": found["first come"][1],
    }


def as_they_come(samples: Sequence[TrainingSample], costs: Costs, limits: Limits) -> list[MicroBatch]:
    """A micro-batch is closed when the next sample does not fit."""
    bins = [Bin(limits)]
    for sample in samples:
        if not bins[-1].take(sample, costs.patches(sample)):
            bins.append(Bin(limits))
            bins[-1].take(sample, costs.patches(sample))
    return [MicroBatch(one.rows) for one in bins]


def memory(bench: Bench) -> dict[str, float]:
    found = {keeper: one["peak"] for keeper, one in peaks().items()}
    rows = [[keeper, peak / 1e6] for keeper, peak in found.items()]
    show("Peak memory of 64 pictures of 1024x1024, MB", ["", "peak"], rows)
    return {"pixel_memory_ratio": found["levels"] / found["values"]} | (device_memory(bench) if bench.gpu else {})


def device_memory(bench: Bench) -> dict[str, float]:
    """What pictures take on a GPU: as they are sent, as the tower takes them, and while the ones become the others."""
    family = bench.family()
    sheet = Sheet.of(Materializer(bench.store, family).load(bench.album(family, SIDES[-1], 8)).pictures)
    sent = sum(array.nbytes for one in sheet.distinct for array in one.arrays.values())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    inputs = picture_inputs(family, sheet, device=bench.config.device)
    torch.cuda.synchronize()
    held, peak = torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before
    del inputs
    rows = [["sent, as levels", sent / 1e6], ["held, as values", held / 1e6], ["peak in between", peak / 1e6]]
    show(f"Device memory of 8 pictures of {SIDES[-1]}x{SIDES[-1]}, MB", ["", ""], rows)
    return {"device_sent_ratio": sent / held, "device_peak_over_values": peak / held}


def main() -> None:
    parser = argparse.ArgumentParser(description="Training steps")
    parser.add_argument("--device", default="cpu", help="as torch names it")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--size", default="tiny", choices=["tiny", "580m"], help="of the model")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    parser.add_argument("--samples", type=int, default=32, help="in a step, a multiple of 8")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each way")
    options = parser.parse_args()
    random.seed(0)
    np.random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        if bench.gpu:
            torch.cuda.set_device(options.device)
        figures = {**waiting(bench), **seeing(bench), **memory(bench), **packing(bench)}
    where = torch.cuda.get_device_name() if bench.gpu else "CPU"
    print(f"on {where}, {options.dtype}, the {options.size} model, torch {torch.__version__}")
    goals = {"image_wait_share": ("<=", 0.02), "step_speedup_g8": (">=", 1.5), "pixel_memory_ratio": ("<=", 1 / 6)}
    conclude("training", figures, goals)


if __name__ == "__main__":
    main()
