"""Feeding a model: rows of tokens and their images become the model's keyword arguments.

B = rows, T = tokens of the longest row.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from filmroll.errors import CheckpointError, ReceiptError, TrainingError
from filmroll.families.hub import name_and_revision
from filmroll.materialize.device import sent, usable_device
from filmroll.materialize.late import normalize
from filmroll.materialize.sheet import Sheet, owned

if TYPE_CHECKING:
    import torch

    from filmroll.families.base import Arrays, Family

SUPPRESSED = -1e9
"""The logit of a token that cannot be sampled: finite, so that softmax and its gradient are too."""
MOST_BIAS = 1e8
"""What a request's own bias may add or take: with it no token is as low as a suppressed one."""
TOWERS = ("visual", "vision_tower", "vision_model", "embed_vision")
"""What transformers calls the vision tower; a model with only the last has one layer in its place."""


def load_model(folder: Path, *, dtype: str = "float32", device: str = "cpu") -> Any:
    """The checkpoint's own transformers model, in evaluation mode; of a folder or of a name on the hub."""
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    place = usable_device(device)
    if place.type == "cuda":
        # Else a tower's convolutions, which many cut their patches by, would read ten bits of each float32.
        torch.backends.cudnn.allow_tf32 = False
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
    return model.to(place).eval()


def model_inputs(
    family: Family,
    rows: Sequence[Sequence[int] | Any],
    sheet: Sheet,
    *,
    pad: Literal["left", "right"],
    device: str | torch.device = "cpu",
) -> dict[str, torch.Tensor]:
    """Keyword arguments of one forward: token rows padded to [B, T], and the pictures of the sheet.

    Where places share their picture's features, pixels are there once for each distinct picture: the
    forward has to run inside `feeding`.
    """
    import torch

    inputs = {name: sent(torch.from_numpy(array), device) for name, array in _padded(family, rows, pad).items()}
    return inputs | picture_inputs(family, sheet, device=device)


def picture_inputs(family: Family, sheet: Sheet, *, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """The part of `model_inputs` that comes from pictures; {} for none. Levels become values here, not before."""
    import torch

    if not sheet.places:
        return {}
    sheet = _seen(family, sheet)
    grid = family.forward.grid
    parts = [family.forward.taken(picture.arrays) for picture in sheet.distinct]
    joined = owned(family.join(parts)) | ({grid: sheet.array(grid, everywhere=True)} if grid else {})
    inputs = {name: sent(torch.from_numpy(array), device) for name, array in joined.items()}
    for name, levels in inputs.items():
        if levels.dtype == torch.uint8:
            inputs[name] = normalize(levels, sent(torch.from_numpy(family.table), device), family.cut)
            if levels.numel() > sum(part[name].size for part in parts):
                inputs[name].masked_fill_(sent(_padding(family, parts, name), device), 0)
    return inputs


def _padding(family: Family, parts: Sequence[Arrays], name: str) -> torch.Tensor:
    """Where `family.join` padded the named array; a level there would become a value, and padding is 0."""
    import torch

    return torch.from_numpy(family.join([part | {name: np.ones_like(part[name])} for part in parts])[name] == 0)


def _seen(family: Family, sheet: Sheet) -> Sheet:
    """The sheet as the vision tower sees it."""
    return sheet if family.forward.shares else sheet.apart()


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

    return logits.index_fill(-1, sent(torch.tensor(family.placeholders.unsampled), logits.device), SUPPRESSED)


def bounded_bias(bias: float) -> float:
    """A request's bias for a token that may be sampled, as far as it counts."""
    return min(MOST_BIAS, max(-MOST_BIAS, bias))


class Consumed:
    """Counts the places whose image features the model really got."""

    def __init__(self) -> None:
        self.images = 0


@contextmanager
def feeding(model: Any, family: Family, sheet: Sheet) -> Iterator[Consumed]:
    """Inside, the model's vision tower sees each distinct picture once, and its features go to every place.

    Every transformers model that sees asks its `get_image_features` for them: the tower's output as the
    language model takes it, projected and without padding. There the features of the distinct pictures
    are copied to all places, those for deeper layers too, so gradients from all places meet in the one
    pass. It is asked once in a forward, whatever is computed again in the backward pass. The count comes
    from what it gave: a model that never asks has consumed nothing.
    """
    import torch

    consumed = Consumed()
    if not sheet.places:
        yield consumed
        return
    core = _core(model)
    sheet = _seen(family, sheet)
    give = core.get_image_features
    rows = sent(torch.from_numpy(sheet.feature_rows()), model.device)

    def shared(*args: Any, **kwargs: Any) -> Any:
        if family.forward.grid:
            asked = inspect.signature(give).bind(*args, **kwargs)
            grid = torch.from_numpy(sheet.array(family.forward.grid))
            asked.arguments[family.forward.grid] = sent(grid, model.device)
            args, kwargs = asked.args, asked.kwargs
        args = tuple(_of_kind(model.dtype, one) for one in args)
        output = give(*args, **{name: _of_kind(model.dtype, one) for name, one in kwargs.items()})
        output.pooler_output = _everywhere(output.pooler_output, rows, sheet.features)
        if deeper := getattr(output, "deepstack_features", None):
            output.deepstack_features = [_everywhere(layer, rows, sheet.features) for layer in deeper]
        consumed.images += len(sheet.places)
        return output

    core.get_image_features = shared
    try:
        yield consumed
    finally:
        del core.get_image_features


def _of_kind(dtype: torch.dtype, given: Any) -> Any:
    """Values as the model's weights are: not every tower rounds them for itself."""
    import torch

    return given.to(dtype) if isinstance(given, torch.Tensor) and given.is_floating_point() else given


def _everywhere(features: Any, rows: torch.Tensor, expected: int) -> Any:
    """The features at the given rows, from those of the distinct pictures: one tensor or a sequence of them, as given.

    [pictures, features, D] or [features, D].
    """
    import torch

    whole = features if isinstance(features, torch.Tensor) else torch.cat(list(features))
    flat = whole.flatten(0, -2)
    if len(flat) != expected:
        raise ReceiptError(f"the vision tower gave {len(flat)} features for images that have {expected}")
    # As many rows as features: each has one place, and stands there already.
    chosen = flat if len(rows) == len(flat) else flat.index_select(0, rows)
    return chosen if whole is features else (chosen,)


def _core(model: Any) -> Any:
    """The model below its language head, which asks for the features of images."""
    core = getattr(model, "model", None)
    if not hasattr(core, "get_image_features"):
        raise TrainingError(f"{type(model).__name__} has no vision tower", remedy="filmroll trains models that see")
    return core


def vision_tower(model: Any) -> Any:
    """What turns pixels into features, with its merger where that is part of it."""
    core = _core(model)
    for name in TOWERS:
        if (module := getattr(core, name, None)) is not None:
            return module
    raise TrainingError(
        f"the vision tower of {type(core).__name__} is none of {', '.join(TOWERS)}",
        remedy="Give it one of these names beside its own",
    )
