"""What `filmroll eval` is asked to do, as a configuration: which model, with which weights, in which environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filmroll.errors import ConfigError
from filmroll.run.config import TINY, Config, build_config, read_toml
from filmroll.run.directory import RunDirectory
from filmroll.run.export import newest_version
from filmroll.run.members.roles import model_dir

TAKEN = ("seed", "environment", "multimodal", "render", "sampling", "engine")
"""What an evaluation takes over from the run whose weights it evaluates."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A version that a run has written."""

    run: RunDirectory
    version: int


@dataclass(frozen=True, slots=True)
class Contest:
    """The configuration, and weights in place of the model folder's own."""

    config: Config
    weights: Weights | None


def contest(model: str, environment: str, flags: list[str]) -> Contest:
    """MODEL, ENVIRONMENT and flags, of which the flags win."""
    weights = _weights(Path(model).expanduser())
    if weights is None:
        values: dict[str, Any] = {"model": model}
    else:
        theirs = weights.run.config()
        values = theirs.model_dump(include=set(TAKEN)) | {"model": str(model_dir(weights.run, theirs))}
    if environment.endswith(".toml"):
        values = read_toml(Path(environment)) | {"model": values["model"]}
    elif environment:
        values["environment"] = _named(environment)
    elif weights is None:
        raise ConfigError(
            "no environment is named",
            remedy="filmroll eval MODEL ENVIRONMENT: color_codeword, module:Class, a TOML file",
        )
    values["run"] = {**values.get("run", {}), "directory": "runs/eval-${RUN_ID}", "control": ""}
    config = build_config(values, flags, "filmroll eval")
    if config.eval.urls and weights is not None:
        raise ConfigError(
            "servers that run already have weights of their own, and would not be asked with this run's",
            remedy="Name the model's folder, or leave eval.urls empty",
        )
    if config.eval.urls and config.multimodal.mode == "raw" and not config.multimodal.store:
        # Servers of elsewhere read no store of ours.
        config = config.model_copy(update={"multimodal": config.multimodal.model_copy(update={"mode": "inline"})})
    return Contest(config, weights)


def _weights(folder: Path) -> Weights | None:
    """The newest weights of a run, if the folder is a run's."""
    if not (folder / "events.jsonl").is_file():
        return None
    run = RunDirectory.open(folder)
    version = newest_version(run)
    if version is None:
        raise ConfigError(
            f"the run {folder} has written no weights yet", remedy="Go on with it, or name the model's folder"
        )
    if run.config().model == TINY and not run.model.is_dir():
        raise ConfigError(f"the run {folder} has lost its model", remedy="model/ in its folder held it")
    return Weights(run, version)


def _named(environment: str) -> dict[str, Any]:
    if ":" in environment:
        return {"name": "custom", "import_path": environment}
    return {"name": environment}
