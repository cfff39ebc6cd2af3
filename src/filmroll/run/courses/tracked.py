"""The rows of a run in Weights & Biases as well, where `run.wandb` names a project.

What it takes to get there, a key, a server, no server at all, is wandb's own business: `wandb login`,
WANDB_BASE_URL, WANDB_MODE and its other variables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from filmroll.errors import ConfigError
from filmroll.run.config import Config
from filmroll.run.courses.course import Observer
from filmroll.run.directory import RunDirectory
from filmroll.run.disclosure import disclosed


@contextmanager
def tracked(run: RunDirectory, config: Config, observe: Observer) -> Iterator[Observer]:
    """Inside, an observer that tells wandb of each row, and then whoever observes anyway.

    A run that goes on is one run there, too. What wandb refuses at its beginning is a ConfigError; later the
    run goes on without it.
    """
    if not config.run.wandb:
        yield observe
        return
    tracker = Tracker(run, config)

    def both(row: dict[str, Any]) -> None:
        tracker.tell(row)
        observe(row)

    try:
        yield both
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close()


class Tracker:
    """A run as wandb knows it."""

    def __init__(self, run: RunDirectory, config: Config) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                "run.wandb needs wandb, which is not installed", remedy="pip install 'filmroll[wandb]'"
            ) from error
        self._run = run
        try:
            self._known = wandb.init(
                project=config.run.wandb,
                id=run.manifest_name(),
                name=run.path.name,
                job_type=run.command,
                resume="allow",
                dir=str(run.path),
                config=disclosed(config.model_dump(mode="json")),
                settings=wandb.Settings(console="off", quiet=True, save_code=False),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"wandb does not take the run: {str(error).partition(chr(10))[0]}",
                remedy="Run `wandb login`, set WANDB_MODE=offline, or leave run.wandb empty",
                private=str(error),
            ) from error
        self._wandb = wandb
        self._tells = True
        for phase in ("warmup", "rl", "sft", "eval"):
            # Steps are counted in each phase, and taken again after a resume: wandb's own count would leave those out.
            self._known.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
        run.event("tracked", url=self._known.url)

    def tell(self, row: dict[str, Any]) -> None:
        """All numbers of a row, by `phase/field` and `phase/field/name`."""
        numbers = dict(_numbers({name: value for name, value in row.items() if name != "time"}, row["phase"]))
        self._try(lambda: self._known.log(numbers))

    def close(self, *, failed: bool = False) -> None:
        self._try(lambda: self._known.finish(exit_code=int(failed)))

    def _try(self, say: Callable[[], None]) -> None:
        if not self._tells:
            return
        lost = (self._wandb.Error, OSError)
        try:
            say()
        except lost as error:
            self._tells = False
            self._run.event("untracked", error=str(error))
            # Else it tries to end what is not there any more when this process ends, and complains.
            with suppress(*lost):
                self._wandb.teardown()


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}/{key}")
    elif isinstance(value, int | float) and math.isfinite(value):
        yield name, value
