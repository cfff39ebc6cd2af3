"""A run's weights as a model's folder, which transformers, vLLM and `filmroll serve` load."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from filmroll.durable import whole_folder
from filmroll.engine.weights import MANIFEST, version_folder
from filmroll.errors import ConfigError, RunError
from filmroll.families.hub import model_folder
from filmroll.run.directory import RunDirectory
from filmroll.run.members.roles import model_dir

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".index.json")


def export(run: RunDirectory, version: int, target: Path | None = None) -> Path:
    """The files of the model that the run began with, and the weights of this version: in `trained/`, or elsewhere.

    Elsewhere is a folder that is not there yet.
    """
    base, weights = model_folder(model_dir(run, run.config())), version_folder(run.weights, version)
    if target is not None and target.exists():
        raise ConfigError(f"{target} is there already", remedy="Name a folder that is not, so that nothing is lost")
    if not (weights / MANIFEST).is_file():
        raise ConfigError(
            f"the run has no weights of version {version}, its newest are of version {newest_version(run)}",
            remedy="A run keeps its last two versions",
        )
    target = target or run.path / "trained"
    try:
        with whole_folder(target) as draft:
            for file in base.iterdir():
                if file.is_file() and not file.name.endswith(WEIGHTS):
                    shutil.copyfile(file, draft / file.name)
            for file in weights.iterdir():
                if file.name != MANIFEST:
                    link_or_copy(file, draft / file.name)
    except OSError as error:
        raise RunError(
            f"the trained model cannot be written: {error.strerror}",
            remedy="The weights are in the run's weights/",
            private=str(error),
        ) from error
    return target


def newest_version(run: RunDirectory) -> int | None:
    """The newest weights that the run has written."""
    numbers = [folder.parent.name.removeprefix("step_") for folder in run.weights.glob(f"step_*/{MANIFEST}")]
    return max((int(number) for number in numbers if number.isdecimal()), default=None)


def link_or_copy(file: Path, target: Path) -> None:
    """The same file under another name, without its bytes where the disk allows that."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
