"""What `filmroll rollouts show` shows: a step's rollouts as one table, or each with its turns and images."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from filmroll.rollout.trajectory import ROOT
from filmroll.run.record import IMAGE, Record, Turn
from filmroll.view.plain import printable, say
from filmroll.view.words import size

_PIPED_WIDTH = 160
TEXT = 1200
"""Characters shown of one turn; its middle is left out."""


def show_overview(records: Sequence[Record]) -> None:
    """One line for each rollout."""
    table = _table()
    for heading in ("rollout", "expected", "answer"):
        table.add_column(heading, overflow="fold")
    for heading in ("reward", "branches", "turns", "tokens", "images"):
        table.add_column(heading, justify="right")
    for record in records:
        table.add_row(
            *(_plain(text, 80) for text in (record.name, record.expected, record.answer)),
            f"{record.reward:g}",
            f"{len(record.trajectory().leaves()):,}",
            f"{len(record.turns):,}",
            f"{sum(turn.tokens for turn in record.turns):,}",
            f"{len(record.images):,}",
        )
    _console().print(table, highlight=False)


def show_rollout(record: Record) -> None:
    """One rollout whole: its turns in the order in which they were added, and its images."""
    say(f"{record.name}, step {record.step}")
    scores = ", ".join(f"{name} {value:g}" for name, value in {"reward": record.reward, **record.metrics}.items())
    say(f"{scores}; expected {_cut(record.expected, 200)!r}, answered {_cut(record.answer, 200)!r}")
    _console().print(_turns(record), highlight=False)
    if record.images:
        _console().print(_images(record), highlight=False)


def _turns(record: Record) -> Table:
    table = _table()
    table.add_column("turn", justify="right")
    table.add_column("after", justify="right")
    table.add_column("who", no_wrap=True)
    table.add_column("text", overflow="fold", ratio=1)
    table.add_column("tokens", justify="right")
    table.add_column("reward", justify="right")
    leaves = set(record.trajectory().leaves())
    for number, turn in enumerate(record.turns):
        own = record.reward if turn.reward is None else turn.reward
        table.add_row(
            str(number),
            "" if turn.parent == ROOT else str(turn.parent),
            turn.role if turn.version is None else f"{turn.role} v{turn.version}",
            _text(turn),
            f"{turn.tokens:,}",
            f"{own:g}" if number in leaves else "",
        )
    return table


def _images(record: Record) -> Table:
    table = _table()
    for heading in ("image", "size", "grid", "tokens", "bytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("where", overflow="fold")
    for row, image in enumerate(record.trajectory().images):
        grids = "; ".join("x".join(map(str, grid)) for grids in image.payload.values() for grid in grids)
        ref = image.image
        table.add_row(
            str(row),
            f"{ref.width}x{ref.height}",
            grids,
            f"{image.tokens:,}",
            size(ref.nbytes),
            _plain(ref.uri, 400),
        )
    return table


def _text(turn: Turn) -> str:
    """The turn's text, its images by their numbers where they stand."""
    numbers = iter(turn.images)
    parts = turn.text.strip("\n").split(IMAGE)
    if len(parts) != len(turn.images) + 1:
        return _plain(turn.text, TEXT) + "".join(f"[bold]\\[image {shown.image}][/]" for shown in numbers)
    limit = max(80, TEXT // len(parts))
    marked = [f"[bold]\\[image {shown.image}][/]" for shown in numbers]
    return "".join(
        part for pair in zip((_plain(one, limit) for one in parts), [*marked, ""], strict=True) for part in pair
    )


def _plain(text: str, limit: int) -> str:
    return escape(printable(_cut(text, limit)))


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} … {len(text) - limit // 2 * 2:,} characters … {text[-(limit // 2) :]}"


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))


def _console() -> Console:
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    return console
