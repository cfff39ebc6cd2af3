"""What the commands that make a run have in common: its beginning, its end, and whose run it is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filmroll.durable import FULL_STATUS, disk_full, free_at, says_full
from filmroll.errors import ConfigError, DiskFullError, FilmrollError, RunError
from filmroll.families import Family, load_family
from filmroll.render.renderer import check_text
from filmroll.run.config import TINY, Config, build_config, read_toml
from filmroll.run.directory import RunDirectory
from filmroll.run.lead import lead
from filmroll.run.members.roles import model_dir
from filmroll.run.processes.ending import Ending, ToldToEnd
from filmroll.run.processes.variables import launched_variables

Observer = Callable[[dict[str, Any]], None]
"""Told of each step's metrics as they are written down."""


@contextmanager
def course(
    run: RunDirectory,
    command: str,
    *,
    resume: bool = False,
    apart: bool = False,
    ending: Ending | None = None,
    **about: Any,
) -> Iterator[None]:
    """The run begins and ends, and its events say so, whatever the end is like.

    What ends it says how to go on. A disk that is full is one DiskFullError, whoever has met it and in whichever words.
    What is refused before any process is started leaves no folder of a run that was to begin.
    """
    way = "" if command == "eval" else way_on(run, command, apart=apart)
    ending = ending or Ending()
    ending.farewell = lambda told: run.event("stopped", reason=str(told))
    try:
        run.event("resumed" if resume else "started", command=command, **about)
        try:
            yield
        except BaseException as error:
            if _refused(error) and run.fresh and run.idle:
                run.discard()
                raise
            # Where the disk is full, this has no room either.
            with suppress(DiskFullError):
                if isinstance(error, ToldToEnd | KeyboardInterrupt):
                    run.event("stopped", reason=str(error) or "interrupted")
                else:
                    run.event("failed", error=str(_saying(way, error)))
            raise
        finally:
            ending.farewell = None
        run.event("stopped" if ending.early else "finished")
    except Exception as error:
        if (said := _saying(way, error)) is error:
            raise
        raise said from error


def way_on(run: RunDirectory, command: str, *, apart: bool = False) -> str:
    """What goes on with the run."""
    return f"`filmroll orchestrator --run {run.path}`" if apart else f"`filmroll {command} --resume {run.path}`"


def _refused(error: BaseException) -> bool:
    """Whether it is what was asked for that is wrong."""
    return isinstance(error, FilmrollError) and error.status < 500


def _saying(way: str, error: BaseException) -> BaseException:
    """The same error, which says how to go on; or itself, where that is not what helps."""
    full = error if isinstance(error, DiskFullError) else disk_full(error) if says_full(error) else None
    if full is not None:
        return full.mended_by(
            f"Make room there; {way} goes on from the last checkpoint" if way else "Make room there and start it again"
        )
    if way and isinstance(error, RunError) and not error.remedy:
        return error.mended_by(f"{way} goes on from the last checkpoint")
    return error


def ready_model(run: RunDirectory, config: Config) -> Family:
    """The family of the run's model, which is built first where that is asked for.

    Said here, a wrong model or option is one clear error; said by a process, it would be a process that ended.
    """
    launched_variables(run, config)
    if config.model == TINY:
        _build_tiny_model(run.model, config.seed)
    check_text(model_dir(run, config), config.render.options)
    return load_family(model_dir(run, config))


def resumed(
    path: Path, command: str, file: Path | None = None, flags: Sequence[str] = (), *, apart: bool = False
) -> RunDirectory:
    """The run in this folder, ready to be gone on with by the command that began it, and led by this process.

    It keeps its configuration, but for what is movable: a file or flags may say that anew.
    """
    run = RunDirectory.open(path)
    check_command(run, command)
    lead(run, apart=apart)
    run.mend()
    if file is not None or flags:
        given = run.config().model_dump(mode="json") if file is None else read_toml(file)
        wanted = build_config(given, list(flags), str(file or path))
        same = RunDirectory.same(path, wanted)
        check_end(run.steps_noted("rl"), wanted.rl.steps, "rl.steps")
        if wanted.sft.steps:
            check_end(run.steps_noted("sft"), wanted.sft.steps, "sft.steps")
        same.move(wanted)
    return run


def check_command(run: RunDirectory, command: str) -> None:
    """A ConfigError where it is another command that has begun the run."""
    if (began := run.command) != command:
        again = "It cannot be gone on with: start another"
        raise ConfigError(
            f"{run.path} is the run of `filmroll {began}`",
            remedy=again if began == "eval" else f"Go on with it by `filmroll {began} --resume`",
        )


def check_end(taken: int, steps: int, field: str) -> None:
    """A ConfigError where a run that goes on is to end before the point it has come to."""
    if taken > steps:
        raise ConfigError(
            f"the run has taken {taken} steps, and {field} has it end after {steps}",
            remedy=f"Let {field} have it end later",
        )


def _build_tiny_model(folder: Path, seed: int) -> None:
    """In a process of its own: the orchestrator never loads torch."""
    command = [sys.executable, "-m", "filmroll", "tiny-model", str(folder), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    if done.returncode == FULL_STATUS:
        raise DiskFullError("there is no room for the tiny model", private=free_at(folder))
    if done.returncode:
        raise RunError("the tiny model could not be built", private=done.stderr.strip()[-2000:])
