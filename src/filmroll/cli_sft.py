"""`filmroll sft`: supervised training on conversations with images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sft(
    context: typer.Context,
    config: Annotated[Path | None, typer.Argument(help="A TOML file with a [data] section.")] = None,
    resume: Annotated[Path | None, typer.Option(help="The folder of a run to go on with.")] = None,
) -> None:
    """Learn conversations with images; every field is also a flag: --data.path chats.jsonl --sft.epochs 3.

    SIGUSR1 ends it after the step that is under way, at a checkpoint, with status 75; SIGTERM ends it at once.
    """
    from filmroll.run.config import help_text, load_config
    from filmroll.run.courses.course import resumed
    from filmroll.run.courses.sft import sft as run_sft
    from filmroll.run.directory import RunDirectory
    from filmroll.run.processes.ending import STOPPED, Ending
    from filmroll.view.display import Display
    from filmroll.view.report import closing_report

    if "--help" in (str(config), *context.args) or (config is None and resume is None):
        fields = help_text("filmroll sft CONFIG.toml")
        typer.echo(f"{fields}\nfilmroll sft --resume RUN goes on with a run from its last checkpoint.")
        return
    if resume is not None:
        run = resumed(resume, "sft", config, context.args)
    else:
        run = RunDirectory.create(load_config(Path(str(config)), context.args))
    ending = Ending()
    ending.listen()
    with Display(run.path, {"sft": None}) as display:
        try:
            whole = run_sft(run.config(), run, display.step, resume=resume is not None, ending=ending)
        finally:
            report = closing_report(run.path)
    if not whole:
        typer.echo(f"stopped at a checkpoint; `filmroll sft --resume {run.path}` goes on")
        raise typer.Exit(STOPPED)
    typer.echo(display.conclusion(report))
