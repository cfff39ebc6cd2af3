"""The places that a configuration names, as one finds them from any folder."""

from __future__ import annotations

import os
import time
from pathlib import Path

from filmroll.errors import ConfigError
from filmroll.families.hub import is_hub_name
from filmroll.run.config import TINY, Config
from filmroll.run.engine_config import EngineConfig

RUN_ID = "${RUN_ID}"
"""Stands for the run's name in a configured path."""


def fixed_place(config: Config) -> Path:
    """The configured folder, where it is the same one whoever asks."""
    wanted = config.run.directory
    if RUN_ID in wanted and not os.environ.get("RUN_ID"):
        raise ConfigError(
            f"run.directory {wanted!r} is another folder for each process that asks, because RUN_ID is not set",
            remedy="Give --run FOLDER, or set RUN_ID to the same name for all",
        )
    return resolve(wanted)


def newest_run(path: str) -> Path | None:
    """The newest of the runs that were given this directory, each with the number it was given."""
    wanted = resolve(path)
    runs = [one for one in wanted.parent.glob(f"{wanted.name}*") if (one / "config.json").is_file()]
    numbered = [one for one in runs if one == wanted or one.name.removeprefix(f"{wanted.name}-").isdecimal()]
    return max(numbered, key=lambda one: (one / "config.json").stat().st_mtime, default=None)


def settled(config: Config, path: Path) -> Config:
    """The configuration without anything that would mean another place from another folder."""
    chosen = config.multimodal
    places = {
        "store": _place(chosen.store, run_id=path.name) if chosen.store else "",
        "cache": str(resolve(chosen.cache, run_id=path.name)) if chosen.cache else "",
    }
    sections = {
        "run": config.run.model_copy(update={"directory": str(path)}),
        "multimodal": chosen.model_copy(update=places),
        "engine": _placed(config.engine, run_id=path.name),
        "model": _model(config.model, run_id=path.name),
        "loss": config.loss.model_copy(
            update={"reference": config.loss.reference and _model(config.loss.reference, run_id=path.name)}
        ),
    }
    return config.model_copy(update=sections)


def _placed(engine: EngineConfig, *, run_id: str) -> EngineConfig:
    """The engine's section, where an executable that is named by its path is named by the whole of it."""
    if engine.kind == "embedded" or "/" not in engine.command:
        return engine
    return engine.model_copy(update={"command": str(resolve(engine.command, run_id=run_id))})


def _model(model: str, *, run_id: str) -> str:
    """A model's folder, resolved; the tiny one and those of the hub are none."""
    return model if model == TINY or is_hub_name(model) else str(resolve(model, run_id=run_id))


def _place(store: str, *, run_id: str) -> str:
    """A store's folder, resolved; a bucket means the same from everywhere."""
    bare = "://" in store or store.lower().startswith("file:")
    return _with_run_id(store, run_id) if bare else str(resolve(store, run_id=run_id))


def resolve(path: str, *, run_id: str | None = None) -> Path:
    """`~` and `${RUN_ID}` in a configured path; the one function that does so."""
    return Path(_with_run_id(path, run_id)).expanduser().absolute()


def _with_run_id(text: str, run_id: str | None) -> str:
    if RUN_ID not in text:
        return text
    return text.replace(RUN_ID, run_id or os.environ.get("RUN_ID") or time.strftime("%Y%m%d-%H%M%S"))
