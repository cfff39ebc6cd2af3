"""What the commands that make a run have in common: its beginning, its end, and whose run it is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filmroll.durable import FULL_STATUS, disk_full, free_at, says_full
from filmroll.errors import ConfigError, DiskFullError, FilmrollError, RunError
from filmroll.families import Family, load_family
from filmroll.render.renderer import check_options
from filmroll.run.config import TINY, Config, build_config, read_toml
from filmroll.run.directory import RunDirectory
from filmroll.run.members.roles import model_dir
from filmroll.run.processes.ending import Ending
from filmroll.run.processes.variables import launched_variables

Observer = Callable[[dict[str, Any]], None]
"""Told of each step's metrics as they are written down."""


@contextmanager
def course(
    run: RunDirectory, command: str, *, resume: bool = False, ending: Ending | None = None, **about: Any
) -> Iterator[None]:
    """The run begins and ends, and its events say so, whatever the end is like.

    A disk that is full, whoever has met it and in whichever words, is one DiskFullError that says how to go on.
    """
    try:
        run.event("resumed" if resume else "started", command=command, **about)
        try:
            yield
        except BaseException as error:
            # Where the disk is full, this has no room either.
            with suppress(DiskFullError):
                run.event("failed", error="interrupted" if isinstance(error, KeyboardInterrupt) else str(error))
            raise
        run.event("stopped" if ending is not None and ending.early else "finished")
    except Exception as error:
        full = error if isinstance(error, DiskFullError) else disk_full(error) if says_full(error) else None
        if full is None:
            raise
        raise _with_a_way_on(full, run, command) from error


def _with_a_way_on(full: DiskFullError, run: RunDirectory, command: str) -> FilmrollError:
    if command == "eval":
        return full.mended_by("Make room there and start it again")
    return full.mended_by(f"Make room there; `filmroll {command} --resume {run.path}` goes on from the last checkpoint")


def ready_model(run: RunDirectory, config: Config) -> Family:
    """The family of the run's model, which is built first where that is asked for.

    Said here, a wrong model or option is one clear error; said by a process, it would be a process that ended.
    """
    launched_variables(run, config)
    if config.model == TINY:
        _build_tiny_model(run.model, config.seed)
    check_options(model_dir(run, config), config.render.options)
    return load_family(model_dir(run, config))


def command_of(run: RunDirectory) -> str:
    """Which command's run this is: train, sft or eval."""
    try:
        with run.events_file.open() as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return "train"
    return str(first.get("command", "train"))


def resumed(path: Path, command: str, file: Path | None = None, flags: Sequence[str] = ()) -> RunDirectory:
    """The run in this folder, ready to be gone on with by the command that began it.

    It keeps its configuration, but for what is movable: a file or flags may say that anew.
    """
    run = RunDirectory.open(path)
    if (began := command_of(run)) != command:
        raise ConfigError(
            f"{path} is the run of `filmroll {began}`", remedy=f"Go on with it by `filmroll {began} --resume`"
        )
    run.mend()
    if file is not None and str(file).startswith("-"):
        # The command line takes its first word for a file.
        file, flags = None, (str(file), *flags)
    if file is not None or flags:
        given = run.config().model_dump(mode="json") if file is None else read_toml(file)
        wanted = build_config(given, list(flags), str(file or path))
        RunDirectory.same(path, wanted).move(wanted)
    return run


def _build_tiny_model(folder: Path, seed: int) -> None:
    """In a process of its own: the orchestrator never loads torch."""
    command = [sys.executable, "-m", "filmroll", "tiny-model", str(folder), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    if done.returncode == FULL_STATUS:
        raise DiskFullError("there is no room for the tiny model", private=free_at(folder))
    if done.returncode:
        raise RunError("the tiny model could not be built", private=done.stderr.strip()[-2000:])
