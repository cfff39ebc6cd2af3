"""A model without its weights: which tensors a trainer writes for it, and what its checkpoint calls them.

transformers' models and their checkpoints name many tensors differently, and cut some otherwise. A
trainer writes the model's names; vLLM's models read a checkpoint's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filmroll.errors import CheckpointError
from filmroll.families.hub import name_and_revision

if TYPE_CHECKING:
    import torch


def outline(model: str) -> Any:
    """The checkpoint's transformers model, whose tensors have shapes and no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    name, revision = name_and_revision(model)
    try:
        config = AutoConfig.from_pretrained(name, revision=revision or "main", local_files_only=Path(name).is_dir())
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            "transformers does not know the model, so its weights cannot be updated",
            remedy="Start the server without a folder of weights",
            private=str(error),
        ) from error


def shapes(outline: Any) -> dict[str, tuple[int, ...]]:
    """What a version of the weights must hold."""
    return {name: tuple(value.shape) for name, value in outline.state_dict().items()}


def in_checkpoint_names(outline: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights as they would be saved: under the names, and in the pieces, of a checkpoint."""
    from transformers.core_model_loading import revert_weight_conversion

    saved: dict[str, torch.Tensor] = revert_weight_conversion(outline, dict(tensors))
    return saved


def ties(outline: Any) -> dict[str, str]:
    """For each further name of a tensor, the first one."""
    first: dict[int, str] = {}
    named = outline.state_dict(keep_vars=True).items()
    return {name: one for name, value in named if (one := first.setdefault(id(value), name)) != name}
