"""Feeding a model: rows of tokens and their images become the model's keyword arguments.

B = rows, T = tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from filmroll.errors import CheckpointError, ReceiptError, TrainingError
from filmroll.families.hub import name_and_revision
from filmroll.materialize.late import normalize
from filmroll.materialize.sheet import Sheet, owned

if TYPE_CHECKING:
    import torch

    from filmroll.families.base import Family

SUPPRESSED = -1e9
"""The logit of a token that cannot be sampled: finite, so that softmax and its gradient are too."""


def load_model(folder: Path, *, dtype: str = "float32", device: str = "cpu") -> Any:
    """The checkpoint's own transformers model, in evaluation mode; of a folder or of a name on the hub."""
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    name, revision = name_and_revision(folder)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            name,
            revision=revision or "main",
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            local_files_only=folder.is_dir(),
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            "the model's weights cannot be loaded", remedy="It must be a transformers checkpoint", private=str(error)
        ) from error
    return model.to(device).eval()


def model_inputs(
    family: Family,
    rows: Sequence[Sequence[int] | Any],
    sheet: Sheet,
    *,
    pad: Literal["left", "right"],
    device: str | torch.device = "cpu",
) -> dict[str, torch.Tensor]:
    """Keyword arguments of one forward: token rows padded to [B, T], and the pictures of the sheet.

    Where the family has a grid, pixels are there once for each distinct picture and grids for each
    place: the forward has to run inside `feeding`. Else every place brings the whole of its picture.
    """
    import torch

    inputs = {name: torch.from_numpy(array).to(device) for name, array in _padded(family, rows, pad).items()}
    return inputs | picture_inputs(family, sheet, device=device)


def picture_inputs(family: Family, sheet: Sheet, *, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """The part of `model_inputs` that comes from pictures; {} for none. Levels become values here, not before."""
    import torch

    if not sheet.places:
        return {}
    if family.forward.grid is None:
        distinct = [family.normalized(picture.arrays) for picture in sheet.distinct]
        joined = owned(family.join([distinct[place] for place in sheet.places]))
    else:
        joined = {name: sheet.array(name, everywhere=name == family.forward.grid) for name in sheet.distinct[0].arrays}
    inputs = {
        name: torch.from_numpy(array).to(device) for name, array in joined.items() if name not in family.forward.unused
    }
    table = torch.from_numpy(family.table).to(device)
    return {
        name: normalize(array, table, family.cut) if array.dtype == torch.uint8 else array
        for name, array in inputs.items()
    }


def rope_positions(model: Any, family: Family, rows: Sequence[Sequence[int] | Any], sheet: Sheet) -> torch.Tensor:
    """[A, B, T] by the model's own rule, on the CPU, for rows padded at their right; A is 3 with mrope, else 1.

    They are passed to every forward: what a transformers model remembers of its last one
    (`rope_deltas`) belongs to whichever batch came last.
    """
    import torch

    rule = getattr(model.model, "get_rope_index", None)
    grid = family.forward.grid
    if rule is None or grid is None:
        return torch.arange(max(len(row) for row in rows)).expand(1, len(rows), -1)
    outlines = tuple(replace(picture, arrays={grid: picture.arrays[grid]}) for picture in sheet.distinct)
    positions: torch.Tensor = rule(**model_inputs(family, rows, Sheet(outlines, sheet.places), pad="right"))[0]
    return positions


def _padded(family: Family, rows: Sequence[Sequence[int] | Any], pad: str) -> dict[str, np.ndarray[Any, Any]]:
    longest = max(len(row) for row in rows)
    ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if pad == "right" else slice(longest - len(row), longest)
        ids[index, place] = row
        mask[index, place] = 1
    arrays = {"input_ids": ids, "attention_mask": mask}
    if family.forward.marks:
        arrays[family.forward.marks] = ((ids == family.placeholders.image) & (mask == 1)).astype(np.int64)
    return arrays


def suppress(logits: torch.Tensor, family: Family) -> torch.Tensor:
    """Logits under which no vision token can be sampled; engine and trainer both pass through here."""
    import torch

    index = torch.tensor(family.placeholders.unsampled, device=logits.device)
    return logits.index_fill(-1, index, SUPPRESSED)


class Consumed:
    """Counts the places whose image features the vision tower really gave."""

    def __init__(self) -> None:
        self.images = 0


@contextmanager
def feeding(model: Any, family: Family, sheet: Sheet) -> Iterator[Consumed]:
    """Inside, the model's vision tower sees each distinct picture once, and its features go to every place.

    Gradients from all places meet in the one pass. The count comes from what the tower returned: a
    model that never calls it has consumed nothing.
    """
    import torch

    consumed = Consumed()
    if not sheet.places:
        yield consumed
        return
    if family.forward.grid is None:
        raise TrainingError(
            f"models of the family {family.name!r} cannot yet be fed each distinct picture once",
            remedy="Run their forward as it is, on model_inputs()",
        )
    tower = vision_tower(model)
    device = next(tower.parameters()).device
    grids = torch.from_numpy(sheet.array(family.forward.grid)).to(device)
    rows = torch.from_numpy(sheet.feature_rows()).to(device)

    def once(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "grid_thw": grids}

    def everywhere(_module: Any, _args: Any, output: Any) -> Any:
        if len(output.pooler_output) != sheet.features:
            raise ReceiptError(
                f"the vision tower gave {len(output.pooler_output)} features for images that have {sheet.features}"
            )
        output.pooler_output = output.pooler_output[rows]
        if getattr(output, "deepstack_features", None) is not None:
            output.deepstack_features = [layer[rows] for layer in output.deepstack_features]
        consumed.images += len(sheet.places)
        return output

    handles = [
        tower.register_forward_pre_hook(once, with_kwargs=True),
        tower.register_forward_hook(everywhere),
    ]
    try:
        yield consumed
    finally:
        for handle in handles:
            handle.remove()


def vision_tower(model: Any) -> Any:
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("visual", "vision_tower", "vision_model"):
            return module
    raise TrainingError(f"{type(model).__name__} has no vision tower", remedy="filmroll trains models that see")
