"""Runs of training, whole, or each of their processes alone, on this machine or on others."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeGuard

import typer

from filmroll.errors import ConfigError

if TYPE_CHECKING:
    from filmroll.run.config import Config
    from filmroll.run.directory import RunDirectory

roles_app = typer.Typer()
FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}
FIELDS = {**FLAGS, "help_option_names": []}
"""Of a command whose help lists every field."""
File = Annotated[str | None, typer.Argument(help="The run's TOML file.")]
Folder = Annotated[Path | None, typer.Option(help="The run's folder, which all machines share.")]
Begun = Annotated[Path | None, typer.Option(help="The folder of a run to go on with.")]


@roles_app.command(context_settings=FIELDS)
def train(context: typer.Context, config: File = None, resume: Begun = None) -> None:
    """Train from a TOML file; every field is also a flag: --rl.steps 50 --environment.images blank."""
    _here("train", config, context.args, resume)


@roles_app.command(context_settings=FIELDS)
def sft(context: typer.Context, config: File = None, resume: Begun = None) -> None:
    """Learn conversations with images; every field is also a flag: --data.path chats.jsonl --sft.epochs 3.

    SIGUSR1 ends it after the step that is under way, at a checkpoint, with status 75; SIGTERM and Ctrl-C end it now.
    """
    _here("sft", config, context.args, resume)


@roles_app.command(context_settings=FLAGS)
def orchestrator(context: typer.Context, config: File = None, run: Folder = None) -> None:
    """Lead a run whose engines, trainer and worker are started apart, with the same file and flags.

    Where the file names data to learn from, it is the run of `filmroll sft`, which has a trainer alone. A run
    that was begun in this folder goes on from its last checkpoint. SIGUSR1 ends it after the step that is
    under way, at a checkpoint, with status 75; SIGTERM and Ctrl-C end it now. The others end with it.
    """
    from filmroll.run.courses.course import resumed
    from filmroll.run.lead import lead

    _log()
    found = _run(config, run, context.args)
    begun, leads = found.begun, _leader(found)
    if begun:
        found = resumed(found.path, leads, apart=True)
    else:
        lead(found, apart=True)
    _carry_out(found, leads, resume=begun, apart=True)


@roles_app.command(context_settings=FLAGS)
def engine(
    context: typer.Context,
    config: File = None,
    run: Folder = None,
    name: Annotated[str, typer.Option(help="engine-0, engine-1, ... where there are several.")] = "engine",
) -> None:
    """One of a run's engines, for as long as its orchestrator lives; started before it or after it."""
    _join("engine", name, config, run, context.args)


@roles_app.command(context_settings=FLAGS)
def trainer(
    context: typer.Context,
    config: File = None,
    run: Folder = None,
    name: Annotated[str, typer.Option(help="trainer-0, trainer-1, ... where it has several nodes.")] = "trainer",
) -> None:
    """A run's trainer, for as long as its orchestrator lives; started before it or after it."""
    _join("trainer", name, config, run, context.args)


@roles_app.command(context_settings=FLAGS)
def worker(context: typer.Context, config: File = None, run: Folder = None) -> None:
    """A run's worker, which plays episodes, for as long as its orchestrator lives; started before it or after it."""
    _join("worker", "worker", config, run, context.args)


@roles_app.command(context_settings=FLAGS)
def slurm(
    context: typer.Context,
    config: File = None,
    run: Folder = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the script and submit nothing.")] = False,
) -> None:
    """Train as a SLURM job, as its section slurm says: writes job.sh into the run's folder and submits it.

    Where the file names data to learn from, it is the run of `filmroll sft`. --run alone submits a run again
    that has ended before its end.
    """
    from filmroll.run.cluster.slurm import submit, write_job
    from filmroll.run.courses.course import check_command
    from filmroll.run.directory import RunDirectory

    if config is not None and run is None:
        found = RunDirectory.create(_loaded(config, run, context.args))
    else:
        found = _run(config, run, context.args)
    check_command(found, _leader(found))
    try:
        script = write_job(found, found.config())
    except ConfigError:
        if found.fresh:
            found.discard()
        raise
    typer.echo(script)
    if not dry_run:
        typer.echo(f"job {submit(script)}; log: {found.logs}/slurm-*.log")


@roles_app.command(hidden=True)
def role(
    role: Annotated[str, typer.Argument(help="engine, trainer or worker.")],
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    name: Annotated[str, typer.Option(help="Its name in the run.")],
    seed: int = 0,
) -> None:
    """What such a process does, for whoever holds its standard input open."""
    from filmroll.run.directory import RunDirectory
    from filmroll.run.members.roles import run_engine, run_trainer, run_worker

    _log()
    opened = RunDirectory.open(run)
    if role == "engine":
        run_engine(opened, name, seed)
    elif role == "trainer":
        run_trainer(opened, name, seed)
    else:
        run_worker(opened, name)


def _here(command: str, config: str | None, flags: list[str], resume: Path | None) -> None:
    """Begin a run whose processes are all started here, or go on with it."""
    from filmroll.run.config import help_text
    from filmroll.run.courses.course import resumed
    from filmroll.run.directory import RunDirectory
    from filmroll.run.lead import lead

    if "--help" in (config, *flags) or (config is None and resume is None):
        fields = help_text(f"filmroll {command} CONFIG.toml")
        typer.echo(f"{fields}\nfilmroll {command} --resume RUN goes on with a run from its last checkpoint.")
        return
    if resume is None:
        run = RunDirectory.create(_loaded(config, None, flags))
        lead(run)
    elif _is_file(config):
        run = resumed(resume, command, Path(config), flags)
    else:
        run = resumed(resume, command, flags=[*filter(None, [config]), *flags])
    _carry_out(run, command, resume=resume is not None)


def _carry_out(run: RunDirectory, command: str, *, resume: bool, apart: bool = False) -> None:
    """Train in this folder and write the report; what was told to end soon exits with a status of its own."""
    from filmroll.run.courses.course import way_on
    from filmroll.run.courses.orchestrator import train
    from filmroll.run.courses.sft import sft
    from filmroll.run.places import newest_run
    from filmroll.run.processes.ending import STOPPED, Ending
    from filmroll.view.display import Display
    from filmroll.view.report import closing_report

    way = way_on(run, command, apart=apart)
    ending = Ending(f"{way} goes on from the last checkpoint")
    ending.listen()
    settings = run.config()
    phases = {"sft": None} if command == "sft" else {"warmup": settings.warmup.steps, "rl": settings.rl.steps}
    take = sft if command == "sft" else train
    control = newest_run(settings.run.control) if settings.run.control else None
    with Display(run.path, phases) as display:
        try:
            whole = take(settings, run, display.step, resume=resume, apart=apart, ending=ending)
        finally:
            report = closing_report(run.path, control=control)
    if not whole:
        typer.echo(f"stopped at a checkpoint; {way} goes on")
        raise typer.Exit(STOPPED)
    typer.echo(display.conclusion(report))


def _leader(run: RunDirectory) -> str:
    """The command whose work an orchestrator does in it."""
    return "sft" if run.command == "sft" else "train"


def _run(config: str | None, run: Path | None, flags: list[str]) -> RunDirectory:
    """The run that is meant, with a folder of its own from now on."""
    from filmroll.run.directory import RunDirectory

    if config is None:
        return RunDirectory.open(_named(run, flags))
    return RunDirectory.at(_loaded(config, run, flags))


def _join(role: str, name: str, config: str | None, run: Path | None, flags: list[str]) -> None:
    from filmroll.run.cluster.join import join, there_will_be
    from filmroll.run.members.names import names_of
    from filmroll.run.places import fixed_place

    _log()
    if config is None:
        found = there_will_be(_named(run, flags), None)
        settings = found.config()
    else:
        loaded = _loaded(config, run, flags)
        found = there_will_be(fixed_place(loaded), loaded)
        settings = found.moved(loaded)
    names = names_of(role, settings)
    if name not in names:
        raise ConfigError(f"this run has no {role} named {name!r}", remedy=f"Choose --name of {', '.join(names)}")
    join(found, settings, name)


def _is_file(config: str | None) -> TypeGuard[str]:
    """Whether the command line's first word, which may be a flag, names a file."""
    return config is not None and not config.startswith("-")


def _loaded(config: str | None, run: Path | None, flags: list[str]) -> Config:
    """The file's configuration, whose run is in the folder that is given, if one is."""
    from filmroll.run.config import load_config

    if not _is_file(config):
        raise ConfigError(
            f"{config} stands where the TOML file should",
            remedy="Name the file first" + ("" if run is None else "; with --run alone, give no flag"),
        )
    return load_config(Path(config), [*flags, *(() if run is None else ("--run.directory", str(run)))])


def _named(run: Path | None, flags: list[str]) -> Path:
    """The folder of a run that has its configuration in it, so that no file and no flag is needed."""
    if run is None:
        raise ConfigError("it is not said which run is meant", remedy="Name its TOML file, or its folder with --run")
    if flags:
        raise ConfigError(f"{flags[0]!r} cannot be changed for a run that has begun", remedy="Give --run alone")
    return run


def _log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
