"""`filmroll eval`: rollouts without training."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def evaluate(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A model's folder, a name on the hub, or the folder of a run for its newest weights.")
    ] = "",
    environment: Annotated[
        str,
        typer.Argument(help="color_codeword, module:Class, or a TOML file; without it that of the run."),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object, and no more.")] = False,
) -> None:
    """Play episodes with a model; every field is also a flag: --eval.episodes 200 --eval.samples 4."""
    from filmroll.run.config import help_text
    from filmroll.run.courses.contest import contest
    from filmroll.run.courses.evaluation import evaluate as run_evaluation
    from filmroll.run.directory import RunDirectory
    from filmroll.run.processes.ending import Ending
    from filmroll.view.display import Display
    from filmroll.view.report import closing_report

    words = (model, environment, *context.args)
    if "--help" in words or not model:
        typer.echo(f"{help_text('filmroll eval MODEL ENVIRONMENT')}\n--json prints the summary as one JSON object.")
        return
    # A flag may stand where the environment could.
    flags = [*([environment] if environment.startswith("--") else []), *context.args]
    chosen = contest(model, "" if environment.startswith("--") else environment, flags)
    run = RunDirectory.create(chosen.config)
    ending = Ending("start it again")
    ending.listen()
    batches = -(-chosen.config.eval.episodes // chosen.config.eval.batch)
    with Display(run.path, {"eval": batches}, quiet=as_json) as display:
        try:
            summary = run_evaluation(run.config(), run, display.step, weights=chosen.weights, ending=ending)
        finally:
            report = closing_report(run.path)
    typer.echo(
        json.dumps(summary.row() | {"run": str(run.path)}) if as_json else f"{summary.words()}; report: {report}"
    )
