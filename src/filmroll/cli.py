"""The command line: thin, one function per command."""

from __future__ import annotations

import errno
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from filmroll.cli_eval import evaluate
from filmroll.cli_rollouts import rollouts_app
from filmroll.cli_run import FIELDS, roles_app
from filmroll.cli_serve import MORE_FLAGS, serve
from filmroll.cli_store import store_app
from filmroll.durable import FULL_STATUS, disk_full, says_full
from filmroll.errors import ConfigError, DiskFullError, FilmrollError, RunError
from filmroll.run.processes.ending import ToldToEnd

app = typer.Typer(
    name="filmroll",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(roles_app)
app.add_typer(rollouts_app)
app.add_typer(store_app)
app.command(context_settings=MORE_FLAGS)(serve)

EXTRAS = frozenset({"matplotlib", "obstore", "safetensors", "starlette", "torch", "transformers", "uvicorn"})
"""Modules that come with filmroll[all] and not with filmroll alone."""
DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
"""What a system says of files that are not for us."""
RunFolder = Annotated[Path, typer.Argument(help="The run's folder.")]

app.command("eval", context_settings=FIELDS)(evaluate)


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(metadata.version("filmroll"))
        raise typer.Exit


@app.callback()
def command_line(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Which filmroll this is.")
    ] = False,
) -> None:
    """Reinforcement learning of vision-language models whose images travel as references."""


@app.command()
def report(
    run: RunFolder, control: Annotated[Path | None, typer.Option(help="A control run to draw beside it.")] = None
) -> None:
    """Write a run's report.html anew."""
    from filmroll.view.report import write_report

    typer.echo(write_report(run, control=control))


@app.command()
def export(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(help="Where the model goes; it must not be there yet.")],
    step: Annotated[int | None, typer.Option(help="After so many updates; the newest unless it is named.")] = None,
) -> None:
    """Write a run's policy as a model's folder, which transformers, vLLM and `filmroll serve` load."""
    from filmroll.run.directory import RunDirectory
    from filmroll.run.export import export as write_model
    from filmroll.run.export import newest_version

    opened = RunDirectory.open(run)
    version = newest_version(opened) if step is None else step
    if version is None:
        raise ConfigError(f"{run} has no weights yet", remedy="They are there once its warm-up is done")
    typer.echo(write_model(opened, version, folder.absolute()))


@app.command("tiny-model")
def tiny_model(
    folder: Annotated[Path, typer.Argument(help="Where the model goes.")],
    seed: Annotated[int, typer.Option(help="Decides its weights.")] = 0,
) -> None:
    """Build a tiny random Qwen3-VL: config, tokenizer, preprocessor, chat template, weights."""
    from filmroll.families.tiny import build_tiny_model

    typer.echo(build_tiny_model(folder, seed=seed))


def main() -> None:
    """Run a command; an error of filmroll's own, and a disk that is full or not ours, is one line, not a traceback."""
    try:
        app()
    except FilmrollError as error:
        _complain(error)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        typer.secho(f"{error.name} is not installed; this command needs filmroll[all]", fg="red", err=True)
        sys.exit(2)
    except ToldToEnd as told:
        typer.echo(str(told), err=True)
        sys.exit(told.status)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if says_full(error):
            _complain(disk_full(error))
        if not isinstance(error, OSError) or error.errno not in DENIED:
            raise
        _complain(RunError(f"a file cannot be had: {error.strerror}", private=str(error.filename)))


def _complain(error: FilmrollError) -> NoReturn:
    # What prints this may be the log on the very disk that is full: then the status says it.
    with suppress(OSError):
        typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
    sys.exit(FULL_STATUS if isinstance(error, DiskFullError) else 2 if error.status < 500 else 1)
