"""Checkpoints: what a run needs to go on, in one folder that is either whole or not there.

    <folder>/step_<6 digits>/shard-*.safetensors    each rank's parts of parameters, moments and random states
                             state.json             how far the run is, and the policy's version

They are written and read by torch.distributed.checkpoint, each rank its own part, into safetensors: nothing
in them is code. Another number of ranks reads them as well.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save as save_parts

from filmroll.durable import disk_full, says_full, whole_folder
from filmroll.errors import FilmrollError, RunError
from filmroll.train.learning.ranks import Ranks
from filmroll.train.step import Progress

STATE = "state.json"
FORMAT = "filmroll-checkpoint-2"
_MODEL, _OPTIMIZER, _RANDOM = "model/", "optimizer/", "random/"


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a checkpoint says beside its tensors."""

    format: str
    progress: Progress
    policy_version: int
    ranks: int


def save(
    folder: Path, model: Any, optimizer: torch.optim.Optimizer, progress: Progress, ranks: Ranks | None = None
) -> Path:
    """Write `folder/step_N`, all ranks together: all of it is there in the end, or an error on every rank."""
    ranks = ranks or Ranks()
    target = folder / progress.name
    state = State(FORMAT, progress, progress.version, ranks.count)
    with _draft(target, ranks) as draft:
        tensors = _parameters(model) | _moments(model, optimizer) | _random_states(model, ranks)
        writer = HuggingFaceStorageWriter(str(draft), save_distributed=True)
        try:
            with _quiet(), _beside(model.device):
                save_parts(tensors, storage_writer=writer, no_dist=ranks.count == 1)
        except CheckpointException as error:
            # Not of Python's Exceptions; torch tells every rank of whatever went wrong on one.
            raise _unwritten(target, tensors, error) from error
        if ranks.leads:
            (draft / STATE).write_bytes(msgspec.json.encode(state))
    return target


def restore(folder: Path, model: Any, optimizer: torch.optim.Optimizer, ranks: Ranks | None = None) -> Progress:
    """Bring model, optimizer and random states back to a checkpoint that any number of ranks has written."""
    ranks = ranks or Ranks()
    with ranks.agreeing():
        state = _state(folder)
        with _named_if_damaged(folder):
            wanted = _wanted(folder, model, ranks)
    with ranks.agreeing(), _named_if_damaged(folder), torch.no_grad(), _quiet():
        load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=ranks.count == 1)
    _put_back(wanted, model, optimizer, ranks)
    return state.progress


def newest(folder: Path) -> Path | None:
    """The latest whole checkpoint of a run."""
    found = sorted(path for path in folder.glob("step_*") if (path / STATE).is_file())
    return found[-1] if found else None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest checkpoints."""
    for path in sorted(folder.glob("step_*"))[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def _unwritten(target: Path, tensors: dict[str, torch.Tensor], error: CheckpointException) -> FilmrollError:
    nbytes = sum(value.nbytes for value in tensors.values())
    for cause, _ in error.failures.values():
        if says_full(cause):
            return disk_full(cause, f"checkpoint {target.name}, {nbytes:,} bytes", target.parent)
    return RunError(f"checkpoint {target.name} could not be written", private=str(error))


@contextmanager
def _draft(target: Path, ranks: Ranks) -> Iterator[Path]:
    """A folder for all ranks to write into, which rank 0 makes, and renames once all of them have."""
    with ExitStack() as stack:
        draft = b""
        with ranks.agreeing():
            if ranks.leads:
                draft = str(stack.enter_context(whole_folder(target))).encode()
        draft = ranks.broadcast(draft)
        with ranks.agreeing():
            yield Path(draft.decode())
        with ranks.agreeing():
            stack.close()


def _parameters(model: Any) -> dict[str, torch.Tensor]:
    """Those that are trained: the others are in the model's folder."""
    return {f"{_MODEL}{name}": value.detach() for name, value in _trained(model).items()}


def _trained(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def _moments(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state by parameter name: an order of parameters would be a thing to get wrong."""
    return {
        f"{_OPTIMIZER}{key}/{name}": value.detach()
        for name, parameter in _trained(model).items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _random_states(model: Any, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Of the host, and of the GPU that the model is on; another one is nothing that it would have to wake."""
    states = {f"{_RANDOM}cpu/{ranks.rank}": torch.get_rng_state()}
    if model.device.type == "cuda":
        states[f"{_RANDOM}cuda/{ranks.rank}"] = torch.cuda.get_rng_state(model.device)
    return states


def _state(folder: Path) -> State:
    with _named_if_damaged(folder):
        said = msgspec.json.decode((folder / STATE).read_bytes())
    try:
        state = msgspec.convert(said, State)
    except msgspec.ValidationError as error:
        raise _of_another_format(folder) from error
    if state.format != FORMAT:
        raise _of_another_format(folder)
    return state


def _wanted(folder: Path, model: Any, ranks: Ranks) -> dict[str, torch.Tensor]:
    """What of a checkpoint this rank reads, and where to: parameters in place, moments and random states anew."""
    there = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    trained = _trained(model)
    kept = {name.removeprefix(_MODEL) for name in there if name.startswith(_MODEL)}
    if different := kept ^ trained.keys():
        raise ValueError(f"{min(different)} is in one of model and checkpoint, and not in both")
    wanted = _parameters(model)
    for name in there:
        if name.startswith(_OPTIMIZER):
            key, of = name.removeprefix(_OPTIMIZER).split("/", 1)
            wanted[name] = torch.zeros(()) if key == "step" else torch.zeros_like(trained[of]).detach()
    return wanted | {name: state for name, state in _random_states(model, ranks).items() if name in there}


def _put_back(wanted: dict[str, torch.Tensor], model: Any, optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
    trained = _trained(model)
    for name, value in wanted.items():
        if name.startswith(_OPTIMIZER):
            key, of = name.removeprefix(_OPTIMIZER).split("/", 1)
            optimizer.state[trained[of]][key] = value
    # A rank that the checkpoint knows nothing of keeps what it began with.
    if (state := wanted.get(f"{_RANDOM}cpu/{ranks.rank}")) is not None:
        torch.set_rng_state(state)
    if (state := wanted.get(f"{_RANDOM}cuda/{ranks.rank}")) is not None:
        torch.cuda.set_rng_state(state, model.device)


def _beside(device: torch.device) -> AbstractContextManager[object]:
    """Torch copies what it saves while it goes on, and waits for the copies of the present GPU alone."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch warns of what is meant: that there is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


@contextmanager
def _named_if_damaged(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError, CheckpointException) as error:
        raise RunError(
            f"checkpoint {folder.name} cannot be restored",
            remedy="Delete it to resume from the one before",
            private=str(error),
        ) from error


def _of_another_format(folder: Path) -> RunError:
    return RunError(
        f"checkpoint {folder.name} is not of the format {FORMAT}, which this filmroll reads",
        remedy="Finish its run with the filmroll that wrote it, or delete the checkpoint to begin anew",
    )
