"""`report.html`: one page that says how a run went, whole in one file, readable without a network."""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from filmroll.durable import disk_full, says_full
from filmroll.errors import FilmrollError, RunError
from filmroll.view import plots, summary, svg, words
from filmroll.view.contact_sheet import contact_sheet
from filmroll.view.darkroom import Darkroom
from filmroll.view.records import RunRecord, read_run

STATIC = Path(__file__).parent / "static"
EVENTS = 60
"""Events listed; of more, the first and the last halves."""


def write_report(run: Path, *, control: Path | None = None) -> Path:
    """Write `run/report.html` and return its path.

    The run may be finished, still running, killed in mid-write, or empty: what cannot be read is
    passed over and named on the page. `control` is another run's folder, drawn beside this one; a
    folder that is not there is a RunError.
    """
    page = _page(read_run(run), read_run(control) if control is not None else None)
    path = run / "report.html"
    part = run / f".report.{os.getpid()}.html"
    try:
        # Model output may hold lone surrogates, which UTF-8 cannot.
        part.write_bytes(page.encode("utf-8", "replace"))
        part.replace(path)
    except OSError as error:
        if says_full(error):
            raise disk_full(error, "the report", path) from error
        raise RunError(f"the report cannot be written: {error.strerror}", private=str(path)) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return path


def closing_report(run: Path, *, control: Path | None = None) -> str:
    """Write the report at the end of a run: where it is, or why it is not written. The run is no worse without."""
    try:
        return str(write_report(run, control=control))
    except FilmrollError as error:
        return f"not written: {error.problem}; `filmroll report {run}` writes it"


def _page(run: RunRecord, control: RunRecord | None) -> str:
    now = time.time()
    darkroom = Darkroom(_images(run))
    notes = [*run.notes, *summary.broken(run), *summary.room(run)]
    if control is not None:
        notes += [f"control run: {note}" for note in control.notes]
    head = summary.headline(run, control, now)
    groups = contact_sheet(run.path, darkroom, notes, unit="batch" if run.command == "eval" else "step")
    events = summary.events(run)
    return _template().render(
        run=run,
        control=control,
        head=head,
        receipts=summary.receipts(run),
        wire=summary.wire(run),
        settings=summary.settings(run.config, run.command),
        config=summary.whole(run.config),
        events=events if len(events) <= EVENTS else [*events[: EVENTS // 2], *events[-EVENTS // 2 :]],
        events_left_out=max(0, len(events) - EVENTS),
        groups=groups,
        darkroom=darkroom,
        notes=notes,
        made=time.strftime("%Y-%m-%d %H:%M", time.localtime(now)),
        style=Markup((STATIC / "report.css").read_text()),  # noqa: S704 - a file of ours
        **_plots(run, control, head.chance),
    )


def _images(run: RunRecord) -> str | Path:
    """The run's store, as its own processes found it."""
    configured = run.config.get("multimodal")
    store = configured.get("store") if isinstance(configured, dict) else None
    return store if isinstance(store, str) and store else run.path / "assets" / "images"


def _plots(run: RunRecord, control: RunRecord | None, chance: float) -> dict[str, Any]:
    with svg.settings():
        return {
            "reward_plots": [plots.reward(run, control, chance, narrow=narrow) for narrow in (False, True)],
            "multiples": plots.multiples(run),
            "wire_plot": plots.wire(run),
            "seconds_plot": plots.seconds(run),
            "memory_plots": [plots.memory(run, narrow=narrow) for narrow in (False, True)],
        }


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(STATIC),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=words.count,
        decimal=words.decimal,
        size=words.size,
        times=words.times,
        duration=words.duration,
        share=words.share,
    )
    environment.tests["known"] = math.isfinite
    return environment.get_template("report.html.j2")
