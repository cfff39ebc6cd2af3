"""Live progress of a run: a Rich display on a terminal, plain lines where output is piped."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from filmroll.run.config import Config
from filmroll.view.records import read_run

WINDOW = 10
"""Steps that the reported reward is a mean over."""


class Display:
    """Shows phase, step, reward, images per second and memory as steps come in."""

    def __init__(self, config: Config, run: Path) -> None:
        self._console = Console()
        self._run = run
        self._rewards = {row["step"]: row["reward"] for row in read_run(run).rl if "reward" in row}
        self._totals = {"warmup": config.warmup.steps, "rl": config.rl.steps}
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
            if total
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
        if "reward" in row:
            # After a resume, a step that is taken again replaces what came of it before.
            kept = {step: reward for step, reward in self._rewards.items() if step < row["step"]}
            self._rewards = {**kept, row["step"]: row["reward"]}
        figures, phase, done = self._figures(row), row["phase"], row["step"] + 1
        if self._console.is_terminal:
            self._bar.update(self._tasks[phase], completed=done, figures=figures)
        elif done % WINDOW == 0 or done == self._totals[phase]:
            self._console.print(f"{phase} {done}/{self._totals[phase]}  {figures}", highlight=False, soft_wrap=True)

    def conclusion(self, report: Path) -> str:
        """The one line that a run ends with."""
        last = self._last()
        if not last:
            return f"no reinforcement learning steps were taken; report: {report}"
        return f"mean reward over the last {len(last)} steps: {fmean(last):.3f}; report: {report}"

    def _last(self) -> list[float]:
        return list(self._rewards.values())[-WINDOW:]

    def _figures(self, row: dict[str, Any]) -> str:
        parts = [f"loss {row['loss']:+.3f}", f"{row['images_per_second']:.0f} images/s"]
        parts.append(f"{sum(row['memory'].values()) / 1e6:.0f} MB")
        last = self._last()
        if last and "reward" in row:
            parts.insert(0, f"reward {row['reward']:.2f} (last {len(last)}: {fmean(last):.2f})")
        return "  ".join(parts)
