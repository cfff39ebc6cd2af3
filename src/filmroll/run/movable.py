"""Which configuration a run that has begun may go on with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from filmroll.run.config import Config

MOVABLE = frozenset(
    {"trainer.ranks", "trainer.nodes", "trainer.device", "engine.device", "engine.gpus", "run.share_gpus", "slurm"}
)
"""What may be another each time a run is gone on with: by how many processes and where, not what they compute."""


def moved(now: Config, config: Config) -> Config:
    """The first, with what is movable as the second has it."""
    for name in MOVABLE:
        section, _, field = name.partition(".")
        ours, theirs = getattr(now, section), getattr(config, section)
        if not field:
            ours = theirs
        elif hasattr(ours, field) and hasattr(theirs, field):
            ours = ours.model_copy(update={field: getattr(theirs, field)})
        now = now.model_copy(update={section: ours})
    return now


def differences(theirs: dict[str, Any], ours: dict[str, Any], section: str = "") -> Iterator[str]:
    """The fields in which two configurations differ and must not, with both values."""
    for name in {**theirs, **ours}:
        if f"{section}{name}" in MOVABLE:
            continue
        one, other = theirs.get(name), ours.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from differences(one, other, f"{section}{name}.")
        elif one != other:
            yield f"{section}{name} is {one!r} there and {other!r} here"
