"""Whether there is room for what a run writes next, while there still is."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.members.roles import model_dir

AHEAD = 2
"""So many checkpoints, each with a version of the weights, there should be room for."""
MOMENTS = 2
"""What the optimizer keeps of each parameter, beside it."""
_log = logging.getLogger(__name__)


class Room:
    """Looks at a run's disk, and says it when there gets to be too little."""

    def __init__(self, run: RunDirectory, config: Config) -> None:
        self._run = run
        self._config = config
        self._short = False

    def look(self) -> None:
        """Write a warning and an event, once until there is enough again."""
        needed, free = AHEAD * self._next(), shutil.disk_usage(self._run.checkpoints).free
        before, self._short = self._short, free < needed
        if self._short and not before:
            self._run.event("room_short", free=free, needed=needed)
            _log.warning(
                "the disk of %s has %s bytes left, and %d more checkpoints with their weights take %s: make room there",
                self._run.path, f"{free:,}", AHEAD, f"{needed:,}",
            )  # fmt: skip

    def _next(self) -> int:
        """What the next checkpoint and the weights beside it take: as much as the last ones, or by the model's files.

        A model of the hub, and adapters before their first checkpoint, are not counted.
        """
        model = _nbytes(model_dir(self._run, self._config).glob("*.safetensors"))
        first = 0 if self._config.trainer.lora_rank else (1 + MOMENTS) * model
        return (_newest(self._run.checkpoints) or first) + (_newest(self._run.weights) or model)


def _newest(folder: Path) -> int:
    """What the newest of the folders in it takes, 0 if there is none."""
    whole = max(folder.glob("step_*"), key=lambda one: one.stat().st_mtime, default=None)
    return 0 if whole is None else _nbytes(whole.iterdir())


def _nbytes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)
