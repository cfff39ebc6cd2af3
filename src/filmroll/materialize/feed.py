"""Feeding a model: rows of tokens and their images become the model's keyword arguments.

B = rows, T = tokens of the longest row, I = images of all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from filmroll.errors import CheckpointError, TrainingError

if TYPE_CHECKING:
    import torch

    from filmroll.families.base import Arrays, Family

SUPPRESSED = -1e9
"""The logit of a token that cannot be sampled: finite, so that softmax and its gradient are too."""


def load_model(folder: Path, *, dtype: str = "float32", device: str = "cpu") -> Any:
    """The checkpoint's own transformers model, in evaluation mode."""
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", local_files_only=folder.is_dir()
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            "the model's weights cannot be loaded", remedy="It must be a transformers checkpoint", private=str(error)
        ) from error
    return model.to(device).eval()


def model_inputs(
    family: Family,
    rows: Sequence[Sequence[int] | Any],
    arrays: Arrays,
    *,
    pad: Literal["left", "right"],
    device: str | torch.device = "cpu",
) -> dict[str, torch.Tensor]:
    """Keyword arguments of one forward: token rows padded to [B, T], the arrays of all I images in row order."""
    import torch

    longest = max(len(row) for row in rows)
    ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if pad == "right" else slice(longest - len(row), longest)
        ids[index, place] = row
        mask[index, place] = 1
    inputs = {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(mask).to(device)}
    if family.forward.token_types:
        types = ((ids == family.placeholders.image) & (mask == 1)).astype(np.int64)
        inputs["mm_token_type_ids"] = torch.from_numpy(types).to(device)
    for name, array in arrays.items():
        inputs[name] = torch.from_numpy(array).to(device)
    return inputs


def suppress(logits: torch.Tensor, family: Family) -> torch.Tensor:
    """Logits under which no vision token can be sampled; engine and trainer both pass through here."""
    import torch

    index = torch.tensor(family.placeholders.unsampled, device=logits.device)
    return logits.index_fill(-1, index, SUPPRESSED)


class Consumed:
    """Counts the images whose features the vision tower really computed."""

    def __init__(self) -> None:
        self.images = 0


@contextmanager
def count_consumed(model: Any) -> Iterator[Consumed]:
    """Watch the vision tower during a forward: the count comes from what it was called with."""
    consumed = Consumed()

    def seen(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        grid = kwargs.get("grid_thw", args[1] if len(args) > 1 else None)
        if grid is not None:
            consumed.images += int(grid.shape[0])

    handle = vision_tower(model).register_forward_pre_hook(seen, with_kwargs=True)
    try:
        yield consumed
    finally:
        handle.remove()


def vision_tower(model: Any) -> Any:
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("visual", "vision_tower", "vision_model"):
            return module
    raise TrainingError(f"{type(model).__name__} has no vision tower", remedy="filmroll trains models that see")
