"""Checkpoints: model, optimizer and progress in one folder that is either whole or not there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from filmroll.durable import whole_folder
from filmroll.errors import RunError
from filmroll.train.step import Progress

STATE = "state.json"


def save(folder: Path, model: Any, optimizer: torch.optim.Optimizer, progress: Progress) -> Path:
    """Write `folder/step_N`: model, optimizer, progress."""
    target = folder / progress.name
    with whole_folder(target) as draft:
        save_file(_parameters(model), draft / "model.safetensors")
        save_file(_moments(model, optimizer), draft / "optimizer.safetensors")
        (draft / STATE).write_bytes(msgspec.json.encode(progress))
    return target


def restore(folder: Path, model: Any, optimizer: torch.optim.Optimizer) -> Progress:
    """Bring model and optimizer back to a checkpoint that `save` wrote."""
    try:
        parameters = load_file(folder / "model.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
        progress = msgspec.json.decode((folder / STATE).read_bytes(), type=Progress)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(parameters[name])
        _restore_moments(model, optimizer, moments)
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError, msgspec.DecodeError) as error:
        raise RunError(
            f"checkpoint {folder.name} cannot be restored",
            remedy="Delete it to resume from the one before",
            private=str(error),
        ) from error
    return progress


def newest(folder: Path) -> Path | None:
    """The latest whole checkpoint of a run."""
    found = sorted(path for path in folder.glob("step_*") if (path / STATE).is_file())
    return found[-1] if found else None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest checkpoints."""
    for path in sorted(folder.glob("step_*"))[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def _parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}


def _moments(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state by parameter name: an order of parameters would be a thing to get wrong."""
    return {
        f"{key}/{name}": value.detach().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_moments(model: Any, optimizer: torch.optim.Optimizer, moments: dict[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for label, value in moments.items():
        key, name = label.split("/", 1)
        optimizer.state[parameters[name]][key] = value
