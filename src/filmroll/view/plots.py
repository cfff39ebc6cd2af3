"""A run's curves. Each plot is one figure, or nothing where the run has no such numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from filmroll.view import restarts, svg, words
from filmroll.view.records import Row, RunRecord
from filmroll.view.series import WINDOW, Floats, column, number, thin, total, trailing_mean

POINTS = 400
"""Points drawn of one curve; in longer runs neighbours are drawn as one."""
BARS = 80
PROCESSES = 7
"""Processes drawn by name; the smaller ones together are drawn as one."""
MEASURED = 24
"""Metrics of an environment drawn, the first by name; `partial` is drawn with the reward."""
MARKS = 40
"""Interruptions drawn, the latest ones."""
NAME_INCHES = 0.75
"""What one of their names takes, with some room about it."""
_COLORS = ("reward", "partial", "violet", "blue", "rose", "green", "sand")

Curve = tuple[str, tuple[str, ...], str, Callable[[Floats], Any]]
"""Its name, the path of its number, its colour, and how neighbours become one."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing, and what the page says above it: a title and a name for each colour."""

    title: str
    svg: Markup
    legend: list[tuple[str, str]] = field(default_factory=list)


class _Canvas:
    """Axes being filled, and the legend that grows with them."""

    def __init__(self, width: float, height: float, along: str = "step") -> None:
        self.axis = svg.axes(width, height, along)
        self.legend: list[tuple[str, str]] = []

    def curve(self, x: Floats, y: Floats, label: str, color: str, how: Any = np.mean, width: float = 1.7) -> None:
        """A curve of what is there; a single point as a dot."""
        x, y = thin(x, y, POINTS, how)
        if len(x):
            self.axis.plot(x, y, color=svg.ink(color), linewidth=width, marker="o" if len(x) == 1 else "")
            self.legend.append((label, color))

    def running_mean(
        self, rows: Sequence[Row], path: tuple[str, ...], label: str, color: str, width: float, *, dots: bool
    ) -> None:
        steps, y = column(rows, "step"), column(rows, *path)
        steps, y = steps[np.isfinite(y)], y[np.isfinite(y)]
        if dots:
            x, dot = thin(steps, y, POINTS)
            self.axis.plot(x, dot, "o", color=svg.ink(color), markersize=3.8, alpha=0.4, markeredgewidth=0)
        self.curve(steps, trailing_mean(y), label, color, width=width)

    def interruptions(self, marks: Sequence[restarts.Mark]) -> None:
        """A dotted line for each, with its name above it where there is room for that."""
        first, last = self.axis.get_xlim()
        apart = (last - first) * NAME_INCHES / self.axis.figure.get_figwidth()
        named = -math.inf
        for mark in marks:
            self.axis.axvline(mark.step, color=svg.ink("faint"), linewidth=0.9, linestyle=(0, (1, 2)))
            if mark.step - named >= apart:
                place = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom"}
                self.axis.annotate(mark.what, (mark.step, 1.0), color=svg.ink("faint"), fontsize=9, **place)
                named = mark.step

    def labels(self, words_of: Callable[[float], str]) -> None:
        self.axis.yaxis.set_major_formatter(lambda value, _: words_of(value))

    def decades(self) -> None:
        """A logarithmic axis over whole powers of ten."""
        low, high = self.axis.dataLim.intervaly
        floor, ceiling = math.floor(math.log10(low)), math.ceil(math.log10(high))
        self.axis.set_yscale("log")
        self.axis.set_ylim(10.0**floor, 10.0 ** max(ceiling, floor + 1))
        self.axis.minorticks_off()

    def plot(self, name: str, title: str) -> Plot | None:
        if not self.legend:
            return None
        return Plot(title, svg.render(self.axis, name, title), self.legend if len(self.legend) > 1 else [])


def reward(run: RunRecord, control: RunRecord | None, chance: float, *, narrow: bool = False) -> Plot | None:
    """Reward per step and its running mean, partial match, held-out episodes, the control run, and chance."""
    if not np.isfinite(column(run.main, "reward")).any():
        return None
    canvas = _Canvas(6.0, 4.4, _unit(run)) if narrow else _Canvas(16.0, 5.2, _unit(run))
    canvas.running_mean(run.main, ("reward",), f"reward, mean of {WINDOW} {_units(run)}", "reward", 2.8, dots=True)
    canvas.running_mean(run.main, ("metrics", "partial"), "partial match", "partial", 1.5, dots=False)
    if run.command == "train":
        versions, held = column(run.evaluations, "version"), column(run.evaluations, "reward")
        canvas.curve(versions, held, "held-out episodes", "blue", width=2.0)
        canvas.axis.plot(*thin(versions, held, POINTS), "o", color=svg.ink("blue"), markersize=5.0)
    if control is not None:
        canvas.running_mean(control.rl, ("reward",), "control run", "control", 2.0, dots=True)
    if math.isfinite(chance):
        canvas.axis.axhline(chance, color=svg.ink("rose"), linewidth=1.2, linestyle=(0, (2, 3)))
        canvas.legend.append(("chance", "rose"))
    canvas.interruptions(restarts.marks(run)[-MARKS:])
    low, high = canvas.axis.get_ylim()
    canvas.axis.set_ylim(min(low, -0.03), max(high, 1.05))
    return canvas.plot("reward-narrow" if narrow else "reward", f"Mean reward of each {_unit(run)}")


def multiples(run: RunRecord) -> list[Plot]:
    """Small plots of how training goes, those that the run has numbers for."""
    mean, most = np.mean, np.max
    gaps: list[Curve] = [
        ("largest", ("logprob_gap_max",), "rose", most),
        ("mean", ("logprob_gap_mean",), "reward", mean),
    ]
    mismatch: list[Curve] = [("mean", ("mismatch_kl",), "blue", mean)]
    reference: list[Curve] = [("mean", ("reference_kl",), "violet", mean)]
    clips: list[Curve] = [("clipped", ("clip_fraction",), "partial", mean)]
    if total(run.rl, "truncated_fraction"):
        clips.append(("truncated", ("truncated_fraction",), "rose", mean))
    ratios: list[Curve] = [("largest", ("ratio_max",), "rose", most), ("mean", ("ratio_mean",), "reward", mean)]
    losses: list[Curve] = [
        ("learnt rows", ("loss",), "blue", mean),
        ("held-out rows", ("held_out_loss",), "rose", mean),
    ]
    plots = (
        _lines("warmup-loss", "Warm-up loss", run.warmup, [("loss", ("loss",), "blue", mean)]),
        _lines("sft-loss", "Loss", run.sft, losses),
        _lines("rate", "Learning rate", run.sft, [("rate", ("learning_rate",), "partial", mean)]),
        _lines("loss", "Policy loss", run.rl, [("loss", ("loss",), "blue", mean)]),
        _lines("entropy", "Entropy of sampled tokens", run.rl, [("entropy", ("entropy",), "violet", mean)]),
        _lines("gap", "Log-probability gap", run.rl, gaps, log=words.power),
        _lines("mismatch", "Divergence of trainer and engine", run.rl, mismatch, log=words.power),
        _lines("ratio", "Importance ratio", run.rl, ratios),
        _lines("grad", "Gradient norm", run.main, [("norm", ("grad_norm",), "green", most)]),
        _lines("clip", "Share of tokens clipped", run.rl, clips),
        _lines("reference", "Divergence from the reference", run.rl, reference),
        _lines(
            "spread", f"Spread of rewards in a {_unit(run)}", run.main, [("spread", ("reward_std",), "reward", mean)]
        ),
        *_measured(run),
        _lines("wait", "Seconds waited for images", run.main, [("waited", ("image_wait",), "rose", most)]),
        _lines("speed", "Images per second", run.main, [("speed", ("images_per_second",), "sand", mean)]),
    )
    return [plot for plot in plots if plot is not None]


def _measured(run: RunRecord) -> list[Plot | None]:
    """What the environment measures beside the reward, under its own names."""
    given = (row.get("metrics") for row in run.main)
    names = sorted({name for one in given if isinstance(one, dict) for name in one} - {"partial"})
    return [
        _lines(f"measured-{number}", name, run.main, [("mean", ("metrics", name), "green", np.mean)])
        for number, name in enumerate(names[:MEASURED])
    ]


def _unit(run: RunRecord) -> str:
    """What a row of the metrics is about."""
    return "batch" if run.command == "eval" else "step"


def _units(run: RunRecord) -> str:
    return "batches" if run.command == "eval" else "steps"


def wire(run: RunRecord) -> Plot | None:
    """Bytes that crossed between processes in each step, and what pixels would have cost."""
    curves: list[Curve] = [
        ("as float32 pixels", ("pixel_bytes",), "bad", np.mean),
        ("requests to the engine", ("request_bytes",), "reward", np.mean),
        ("samples to the trainer", ("sample_bytes",), "blue", np.mean),
        ("image files", ("image_bytes",), "partial", np.mean),
    ]
    return _lines(
        "wire", f"Bytes in a {_unit(run)}, logarithmic", run.main, curves, log=words.round_size, width=6.8, height=3.5
    )


def seconds(run: RunRecord) -> Plot | None:
    """What a step's time goes into."""
    rows = [row for row in run.main if isinstance(row.get("seconds"), dict)]
    if not rows:
        return None
    canvas = _Canvas(6.8, 3.5, _unit(run))
    steps = column(rows, "step")
    base: Any = 0.0
    parts = (
        ("rollout", "reward"),
        ("render", "reward"),
        ("train", "violet"),
        ("weights", "partial"),
        ("evaluate", "blue"),
    )
    for name, color in parts:
        if not np.isfinite(column(rows, "seconds", name)).any():
            continue
        x, y = thin(steps, np.nan_to_num(column(rows, "seconds", name)), BARS)
        canvas.axis.bar(x, y, 0.86 * _pitch(x), base, color=svg.ink(color))
        canvas.legend.append((name, color))
        base = base + y
    canvas.curve(steps, column(rows, "seconds", "total"), f"the whole {_unit(run)}", "ink")
    canvas.axis.set_ylim(bottom=0)
    return canvas.plot("seconds", f"Seconds in a {_unit(run)}")


def memory(run: RunRecord, *, narrow: bool = False) -> Plot | None:
    """Resident memory of every process, by minutes since the first step, and what steps took of a GPU's."""
    rows = [row for row in run.rows if isinstance(row.get("memory"), dict) and math.isfinite(number(row, "time"))]
    columns = {
        name: column(rows, "memory", name) for name in dict.fromkeys(name for row in rows for name in row["memory"])
    }
    columns |= {"trainer's GPU": column(rows, "gpu_memory")}
    peaks = {name: float(np.nanmax(values)) for name, values in columns.items() if np.isfinite(values).any()}
    if not peaks:
        return None
    canvas = _Canvas(6.0, 3.4, "minutes") if narrow else _Canvas(16.0, 4.0, "minutes")
    minutes = (column(rows, "time") - number(rows[0], "time")) / 60
    names = sorted(peaks, key=lambda name: -peaks[name])
    for name, color in zip(names, _COLORS, strict=False):
        canvas.curve(minutes, columns[name], name, color, np.max)
    rest = names[PROCESSES:]
    if rest:
        sums = np.nansum([columns[name] for name in rest], axis=0)
        canvas.curve(minutes, sums, f"{len(rest)} others together", "faint", np.max)
    canvas.axis.set_ylim(bottom=0)
    canvas.labels(words.round_size)
    return canvas.plot("memory-narrow" if narrow else "memory", "Resident memory of each process")


def _lines(
    name: str,
    title: str,
    rows: Sequence[Row],
    curves: Sequence[Curve],
    *,
    log: Callable[[float], str] | None = None,
    width: float = 6.0,
    height: float = 2.7,
) -> Plot | None:
    """Curves over steps; `log` makes the axis logarithmic and words its powers of ten."""
    canvas = _Canvas(width, height, "batch" if rows and rows[0].get("phase") == "eval" else "step")
    steps = column(rows, "step")
    for label, path, color, how in curves:
        y = column(rows, *path)
        canvas.curve(steps, y if log is None else np.where(y > 0, y, np.nan), label, color, how)
    if log is not None and canvas.legend:
        canvas.decades()
        canvas.labels(log)
    return canvas.plot(name, title)


def _pitch(x: Floats) -> float:
    """How far apart bars stand."""
    return float(np.max(np.diff(x))) if len(x) > 1 else 1.0
