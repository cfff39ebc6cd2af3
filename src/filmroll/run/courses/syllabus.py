"""What a supervised run learns, and in which steps: its rows, checked before anything is started."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from filmroll.dataset.check import bad_rows
from filmroll.dataset.config import DataConfig
from filmroll.dataset.conversation import Reader
from filmroll.dataset.order import Indices, Order, hold_out
from filmroll.dataset.rows import Rows, open_rows
from filmroll.errors import ConfigError, DatasetError
from filmroll.render import Renderer
from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory

SHOWN = 20
"""Bad rows that the events name; the others are counted."""


@dataclass(frozen=True, slots=True)
class Source:
    """A data set, how its rows are read, and those that can be learnt from as far as a check without pixels tells."""

    rows: Rows
    reader: Reader
    good: Indices

    @property
    def source(self) -> tuple[Rows, Reader]:
        return self.rows, self.reader


@dataclass(frozen=True, slots=True)
class Syllabus:
    """Rows to learn from in their order, and rows that the loss is measured on."""

    learnt: Source
    order: Order
    steps: int
    held: Source | None
    held_rows: Sequence[int]

    @classmethod
    def of(cls, config: Config, run: RunDirectory, renderer: Renderer) -> Syllabus:
        """Read and check the configured data. A run that goes on must find the data that it began with."""
        data, settings = config.data, config.sft
        if not data.path:
            raise ConfigError("data.path names no data to learn from", remedy="Name a JSON lines file in [data]")
        learnt = held = _source(config, run, renderer, data.path, data.split)
        rows, held_rows = learnt.good, np.array([], np.int64)
        if data.held_out_path or data.held_out_split:
            held = _source(config, run, renderer, data.held_out_path or data.path, data.held_out_split or data.split)
            held_rows = held.good
        elif data.held_out:
            rows, held_rows = hold_out(learnt.good, data.held_out, config.seed)
        order = Order(rows, settings.batch_size, config.seed, data.shuffle)
        steps = order.steps_per_epoch * settings.epochs
        _same_as_before(run, learnt.rows.fingerprint)
        return cls(
            learnt,
            order,
            min(steps, settings.steps or steps),
            held if len(held_rows) else None,
            [int(row) for row in held_rows],
        )


def _source(config: Config, run: RunDirectory, renderer: Renderer, path: str, split: str) -> Source:
    data: DataConfig = config.data
    rows = open_rows(path, split=split, subset=data.subset)
    reader = Reader(data, rows.root)
    bad = []
    for index, error in bad_rows(rows, reader, renderer):
        if data.bad == "refuse":
            raise error
        bad.append(index)
        if len(bad) <= SHOWN:
            run.event("row_skipped", error=str(error))
    good = np.setdiff1d(np.arange(len(rows), dtype=np.int64), np.array(bad, np.int64))
    if not len(good):
        raise DatasetError(f"none of the {len(rows)} rows of {path} can be learnt from")
    run.event("data_checked", path=path, rows=len(rows), skipped=len(bad))
    return Source(rows, reader, good)


def _same_as_before(run: RunDirectory, fingerprint: str) -> None:
    if not run.data_file.exists():
        run.note(run.data_file.name, {"fingerprint": fingerprint})
    elif json.loads(run.data_file.read_text())["fingerprint"] != fingerprint:
        raise ConfigError(
            "the data is not what this run began with, so its steps would not be the same",
            remedy="Bring the files back as they were, or begin a new run",
        )
