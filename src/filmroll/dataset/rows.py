"""Rows by number: what JSON lines and tables have in common, and which of the two a path names."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any, Protocol

from filmroll.dataset.lines import JsonLines
from filmroll.errors import ConfigError

Row = dict[str, Any]
LINES = (".jsonl", ".ndjson", ".json")


class Rows(Protocol):
    """A data set; its rows are read when they are asked for. Safe to use from several threads."""

    root: Path
    """Where relative paths of images begin unless the configuration says otherwise."""
    fingerprint: str
    """Another one where a row has moved or changed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row:
        """A DatasetError where it is none."""

    def place(self, index: int) -> str:
        """Where a person finds it."""


def open_rows(path: str, *, split: str = "train", subset: str = "") -> Rows:
    """The data set that a path, a pattern or a name on the hub means."""
    place = str(Path(path).expanduser())
    files = [Path(one) for one in sorted(glob.glob(place, recursive=True))]  # noqa: PTH207 - of any folder
    if files and all(one.suffix in LINES and one.is_file() for one in files):
        return JsonLines.open(files)
    from filmroll.dataset.tables import open_table

    if files and (len(files) == 1 or all(one.suffix == ".parquet" for one in files)):
        return open_table(path, files, split=split, subset=subset)
    if files:
        raise ConfigError(f"data.path {path!r} names files of several kinds", remedy="Name .jsonl or .parquet files")
    return open_table(path, [], split=split, subset=subset)
