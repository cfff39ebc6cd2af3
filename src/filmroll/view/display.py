"""Live progress of a run: a Rich display on a terminal, plain lines where output is piped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from filmroll.view.records import read_run

WINDOW = 10
"""Steps that the reported reward is a mean over."""


class Display:
    """Shows phase, step, reward or loss, images per second and memory as steps come in."""

    def __init__(self, run: Path, totals: Mapping[str, int | None], *, quiet: bool = False) -> None:
        """`totals` has the steps of each phase, none where a step's own row says so; `quiet` shows nothing."""
        self._console = Console(quiet=quiet)
        self._run = run
        self._rewards = {row["step"]: row["reward"] for row in read_run(run).rl if "reward" in row}
        self._totals = dict(totals)
        self._loss: float | None = None
        self._held_out: float | None = None
        self._bar = Progress(
            TextColumn("{task.description:>7}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks = {
            phase: self._bar.add_task(phase, total=total, figures="starting")
            for phase, total in self._totals.items()
            if total != 0
        }

    def __enter__(self) -> Display:
        self._console.print(f"run {self._run}", highlight=False, soft_wrap=True)
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, row: dict[str, Any]) -> None:
        """One step's metrics."""
        phase, done = row["phase"], row["step"] + 1
        if "reward" in row:
            # After a resume, a step that is taken again replaces what came of it before.
            kept = {step: reward for step, reward in self._rewards.items() if step < row["step"]}
            self._rewards = {**kept, row["step"]: row["reward"]}
        self._loss = row.get("held_out_loss", self._loss)
        self._held_out = row.get("held_out_reward", self._held_out)
        self._totals[phase] = total = row.get("steps", self._totals[phase])
        figures = self._figures(row)
        if self._console.is_terminal:
            self._bar.update(self._tasks[phase], completed=done, total=total, figures=figures)
        elif done % WINDOW == 0 or done == total or phase == "eval":
            self._console.print(f"{phase} {done}/{total}  {figures}", highlight=False, soft_wrap=True)

    def conclusion(self, report: str) -> str:
        """The one line that a run of training ends with."""
        last = self._last()
        if "sft" in self._totals:
            held = "no rows were held out" if self._loss is None else f"loss on held-out rows: {self._loss:.4f}"
            return f"{held}; model: {self._run / 'trained'}; report: {report}"
        if not last:
            return f"no reinforcement learning steps were taken; report: {report}"
        held = "" if self._held_out is None else f"; on held-out episodes: {self._held_out:.3f}"
        return f"mean reward over the last {len(last)} steps: {fmean(last):.3f}{held}; report: {report}"

    def _last(self) -> list[float]:
        return list(self._rewards.values())[-WINDOW:]

    def _figures(self, row: dict[str, Any]) -> str:
        parts = [f"loss {row['loss']:+.3f}"] if "loss" in row else []
        if self._loss is not None:
            parts.append(f"held out {self._loss:.3f}")
        if self._held_out is not None:
            parts.append(f"held out {self._held_out:.2f}")
        parts += [f"{row['images_per_second']:.0f} images/s", f"{sum(row['memory'].values()) / 1e6:.0f} MB"]
        last = self._last()
        if last and "reward" in row:
            parts.insert(0, f"reward {row['reward']:.2f} (last {len(last)}: {fmean(last):.2f})")
        return "  ".join(parts)
