"""Tables of the `datasets` package by number: saved folders, parquet files, names on the hub.

Rows are read as Arrow holds them: an image is the bytes of its file, or its path, never decoded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filmroll.errors import ConfigError, DatasetError
from filmroll.families.hub import is_hub_name, name_and_revision

SAVED = ("state.json", "dataset_dict.json")
"""One of these is in a folder that `datasets` saved."""


class Table:
    """A data set of `datasets`, mapped into memory."""

    def __init__(self, table: Any, name: str, root: Path) -> None:
        self.root = root
        self._name = name
        self.fingerprint = str(table._fingerprint)
        self._table = table.with_format("arrow")

    def __len__(self) -> int:
        return len(self._table)

    def place(self, index: int) -> str:
        return f"{self._name} row {index}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            row = self._table[index].to_pylist()[0]
        except (OSError, ValueError) as error:
            raise DatasetError(f"it cannot be read: {error}") from error
        # Arrow gives each message every key that any message has.
        return {key: _without_none(value) for key, value in row.items()}


def open_table(path: str, files: Sequence[Path], *, split: str, subset: str) -> Table:
    """What a path means: `files` are what is there of that name, none for a name on the hub."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"data.path {path!r} is no JSON lines file, and for others the datasets package is needed",
            remedy="Install filmroll[datasets]",
        ) from error
    if not files and not is_hub_name(path):
        raise ConfigError(f"data.path {path!r}: there is no such file", remedy="Name files, or org/name on the hub")
    try:
        found = _loaded(datasets, path, files, split, subset)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(
            f"data.path {path!r} cannot be opened as a data set",
            remedy="See data.split and data.subset",
            private=f"{type(error).__name__}: {error}"[:400],
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise ConfigError(
                f"data.path {path!r} has no split {split!r}", remedy=f"It has {', '.join(map(str, found))}"
            )
        found = found[split]
    root = files[0].resolve() if files else Path.cwd()
    return Table(found, Path(path).name, root if root.is_dir() else root.parent)


def _loaded(datasets: Any, path: str, files: Sequence[Path], split: str, subset: str) -> Any:
    if not files:
        name, revision = name_and_revision(path)
        return datasets.load_dataset(name, subset or None, split=split, revision=revision)
    folder = files[0]
    if folder.is_dir() and any((folder / name).is_file() for name in SAVED):
        return datasets.load_from_disk(str(folder))
    tables = sorted(folder.rglob("*.parquet")) if folder.is_dir() else list(files)
    if not tables or any(one.suffix != ".parquet" for one in tables):
        raise ValueError("it is neither JSON lines, nor parquet, nor a folder that datasets saved")
    return datasets.Dataset.from_parquet([str(one) for one in tables])


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_none(inner) for inner in value]
    return value
