"""Packed rows: samples one behind another, as a model takes them, none of which sees another.

S = samples, B = rows, T = tokens of the longest row, L = tokens of the longest sample,
A = position axes (3 with mrope, else 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from filmroll.families.base import Family
from filmroll.materialize.device import sent
from filmroll.materialize.feed import picture_inputs, rope_positions
from filmroll.materialize.sheet import Sheet
from filmroll.wire.training import TrainingSample

if TYPE_CHECKING:
    import torch

Rows = Sequence[Sequence[TrainingSample]]


def starts(rows: Rows) -> list[tuple[int, int]]:
    """Row and column at which each sample begins."""
    return [
        (number, start)
        for number, row in enumerate(rows)
        for start in list(accumulate((sample.tokens for sample in row), initial=0))[:-1]
    ]


def row_inputs(model: Any, family: Family, rows: Rows, sheet: Sheet) -> dict[str, torch.Tensor]:
    """Keyword arguments of one forward over the rows and the pictures of the sheet, which are in the same order.

    There is no attention mask: transformers keeps apart what follows a position that begins anew, and
    the padding at a row's end is behind all that counts. The mrope axes alone would not do: an image's
    positions go forth and back. So the model gets the plain positions beside them.
    """
    import torch

    samples = [sample for row in rows for sample in row]
    rope = rope_positions(model, family, [sample.token_ids for sample in samples], sheet)  # [A, S, L]
    width = max(sum(sample.tokens for sample in row) for row in rows)
    ids, marks, plain = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    axes = torch.zeros(len(rope), len(rows), width, dtype=torch.long)
    for index, (sample, (row, start)) in enumerate(zip(samples, starts(rows), strict=True)):
        own = slice(start, start + sample.tokens)
        ids[row, own] = torch.from_numpy(sample.token_ids.astype(np.int64))
        marks[row, own] = ids[row, own] == family.placeholders.image
        plain[row, start:] = torch.arange(width - start)
        axes[:, row, own] = rope[:, index, : sample.tokens]
    inputs = {"input_ids": ids, "position_ids": plain if len(axes) == 1 else torch.cat([plain[None], axes])}
    if family.forward.marks:
        inputs[family.forward.marks] = marks
    device = model.device
    return {name: sent(value, device) for name, value in inputs.items()} | picture_inputs(family, sheet, device=device)
