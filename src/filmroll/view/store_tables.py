"""What `filmroll store` shows: a progress bar and tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from filmroll.store.upkeep.stats import Census
from filmroll.store.upkeep.tally import Tally
from filmroll.store.upkeep.verify import Progress
from filmroll.view.plain import printable, say
from filmroll.view.words import duration, size

_PIPED_WIDTH = 200


@contextmanager
def progress() -> Iterator[Progress]:
    """A bar on a terminal, a line for every tenth where output is piped."""
    console = Console()
    if console.is_terminal:
        with Bar(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task("verify", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    tenths = 0

    def report(done: int, total: int) -> None:
        nonlocal tenths
        while total and done * 10 // total > tenths:
            tenths += 1
            say(f"  {tenths * 10} %")

    yield report


def show_census(where: str, counted: Census) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    say(where)
    for table in (_contents(counted), _manifests(counted), _leases(counted)):
        if table.row_count:
            console.print(table, highlight=False)
    for problem in counted.unreadable:
        say(f"UNREADABLE  {problem}")


def _contents(counted: Census) -> Table:
    table = _table("", "objects", "bytes")
    for media_type, images in sorted(counted.images.items()):
        table.add_row(media_type, *_two(images))
    table.add_row("nothing refers to", *_two(counted.unreferenced))
    for folder, objects in counted.folders.items():
        table.add_row(folder, *_two(objects))
    table.add_row("foreign", *_two(counted.foreign))
    return table


def _manifests(counted: Census) -> Table:
    table = _table("manifest", "labels", "images", "bytes", "only its own", "bytes", "missing")
    for name, share in sorted(counted.manifests.items()):
        table.add_row(name, f"{share.labels:,}", *_two(share.images), *_two(share.only), f"{share.missing:,}")
    return table


def _leases(counted: Census) -> Table:
    table = _table("lease", "images", "holds for")
    for lease in counted.leases:
        term = duration(lease.seconds) if lease.seconds else "over"
        table.add_row(escape(printable(lease.owner)), f"{lease.images:,}", term)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _two(tally: Tally) -> tuple[str, str]:
    return f"{tally.count:,}", size(tally.nbytes)
