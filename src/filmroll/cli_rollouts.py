"""`filmroll rollouts`: what a run's rollouts were shown and said; thin, one function per command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from filmroll.view.plain import printable

rollouts_app = typer.Typer(
    name="rollouts",
    help="Look at the rollouts that a run has recorded.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@rollouts_app.callback()
def rollouts() -> None:
    """Look at the rollouts that a run has recorded."""


@rollouts_app.command()
def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")],
    step: Annotated[
        int | None, typer.Option(min=0, help="Which recorded step; the last one without this.", show_default=False)
    ] = None,
    name: Annotated[
        str, typer.Option(metavar="PATTERN", help="Only rollouts of such names, whole: '*/prompt_3/*'.")
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="The records themselves, one JSON object a line, with all tokens.")
    ] = False,
) -> None:
    """Show a step's rollouts as a table; with --name each of them turn by turn; with --json as they were written."""
    from filmroll.view.records import read_rollouts
    from filmroll.view.rollouts import show_overview, show_rollout

    found = read_rollouts(run, step, name or "*")
    for note in found.notes:
        typer.secho(f"note: {printable(note)}", fg="yellow", err=True)
    if as_json:
        for row in found.rows:
            typer.echo(json.dumps(row))
    elif name or len(found.records) == 1:
        for record in found.records:
            show_rollout(record)
    else:
        show_overview(found.records)
