"""JSON lines by number. A file is read through once, line by line, and what is kept of it is where each line begins."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from filmroll.errors import ConfigError, DatasetError

Offsets = npt.NDArray[np.int64]


class JsonLines:
    """N lines of one or several files; blank ones do not count."""

    def __init__(
        self, files: Sequence[Path], ends: Offsets, offsets: Offsets, numbers: Offsets, fingerprint: str
    ) -> None:
        """[N] `offsets` and line `numbers`, file after file; [files] `ends` of each file among them."""
        self.fingerprint = fingerprint
        self.root = files[0].resolve().parent
        self._files = list(files)
        self._ends = ends
        self._offsets = offsets
        self._numbers = numbers

    @classmethod
    def open(cls, files: Sequence[Path]) -> JsonLines:
        offsets: list[Offsets] = []
        numbers: list[Offsets] = []
        content = hashlib.sha256()
        for file in files:
            found, at = _index(file, content.update)
            offsets.append(found)
            numbers.append(at)
        ends = np.cumsum([len(one) for one in offsets], dtype=np.int64)
        if not ends[-1]:
            raise ConfigError(f"{files[0]} has no lines", remedy="Each line is a JSON object with messages")
        return cls(files, ends, np.concatenate(offsets), np.concatenate(numbers), content.hexdigest()[:32])

    def __len__(self) -> int:
        return len(self._offsets)

    def place(self, index: int) -> str:
        return f"{self._file(index).name}:{self._numbers[index]}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            with self._file(index).open("rb") as file:
                file.seek(int(self._offsets[index]))
                row = msgspec.json.decode(file.readline())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DatasetError(f"it is no JSON: {error}") from None
        except OSError as error:
            raise DatasetError(f"it cannot be read: {error.strerror}") from error
        if not isinstance(row, dict):
            raise DatasetError(f"it is a {type(row).__name__}, a row is an object")
        return row

    def _file(self, index: int) -> Path:
        return self._files[int(np.searchsorted(self._ends, index, side="right"))]


def _index(path: Path, see: Callable[[bytes], None]) -> tuple[Offsets, Offsets]:
    """Where the lines begin that are not blank, and their numbers; `see` is shown all lines."""
    offsets: list[int] = []
    numbers: list[int] = []
    at = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                see(line)
                if number == 1 and line.startswith(codecs.BOM_UTF8):
                    # Some editors begin a file so; it is no part of the row.
                    at, line = len(codecs.BOM_UTF8), line.removeprefix(codecs.BOM_UTF8)
                if not line.isspace():
                    if not offsets and line.lstrip().startswith(b"["):
                        raise ConfigError(
                            f"{path} is one JSON array, not JSON lines",
                            remedy=f"Write each of its rows in a line: jq -c '.[]' {path.name} > {path.stem}.jsonl",
                        )
                    offsets.append(at)
                    numbers.append(number)
                at += len(line)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", remedy="Name a file of JSON lines") from error
    return np.array(offsets, np.int64), np.array(numbers, np.int64)
