"""Text that no terminal obeys."""

from __future__ import annotations

import typer


def say(line: str) -> None:
    """A line of output. Names of files may hold anything, also what a terminal would obey."""
    typer.echo(printable(line))


def printable(text: str) -> str:
    return "".join(one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text)
