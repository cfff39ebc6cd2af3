"""Which configuration a run that has begun may go on with: otherwise carried out, not otherwise meant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from filmroll.run.config import Config

MOVABLE = (
    # Where, and by how many processes.
    *("trainer.ranks", "trainer.nodes", "trainer.device", "run.share_gpus", "slurm", "cluster"),
    *("engine.replicas", "engine.device", "engine.gpus"),
    # With how much memory and how fast. Rows are packed otherwise and add up to the same step.
    *("trainer.max_tokens", "trainer.max_patches", "trainer.logits_at_once", "trainer.gradient_checkpointing"),
    *("trainer.cache_mb", "trainer.prefetch_mb", "trainer.readers", "trainer.threads", "trainer.shard_mb"),
    *("engine.max_batch", "engine.cache_mb", "engine.threads", "transport.window_messages", "transport.window_mb"),
    # How long, how often, and how much is borne.
    *("rl.steps", "sft.epochs", "sft.steps", "run.restarts", "engine.restarts"),
    *("run.checkpoint_every", "run.keep_checkpoints", "run.record_every", "rl.evaluate_every"),
    *("multimodal.missing_image", "multimodal.missing_share"),
)
"""Fields, and sections whose fields are."""


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


def differences(theirs: Config, ours: Config) -> list[str]:
    """The fields in which two configurations differ and must not, with both values."""
    return [
        f"{name} is {one!r} there and {other!r} here"
        for name, (one, other) in _unlike(theirs.model_dump(), ours.model_dump())
        if not _is_movable(name)
    ]


def moves(before: Config, now: Config) -> dict[str, tuple[Any, Any]]:
    """What has become of the movable fields that differ: what they were and what they are."""
    unlike = _unlike(before.model_dump(mode="json"), now.model_dump(mode="json"))
    return {name: values for name, values in unlike if _is_movable(name)}


def _is_movable(name: str) -> bool:
    return name in MOVABLE or name.partition(".")[0] in MOVABLE


def _unlike(one: dict[str, Any], other: dict[str, Any], section: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name in {**one, **other}:
        before, now = one.get(name), other.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _unlike(before, now, f"{section}{name}.")
        elif before != now:
            yield f"{section}{name}", (before, now)
