"""The policy that a trained one is to stay close to: frozen, and fed as the trained one is."""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from filmroll.durable import whole_folder
from filmroll.engine.weights import read_weights, version_folder
from filmroll.errors import CheckpointError
from filmroll.families import Family, load_family
from filmroll.materialize.feed import load_model

FIRST = 0
"""The version that reinforcement learning begins with."""


class Reference:
    """A model as it is in its folder, or with the weights of version 0 that `kept` outlive the versions after it.

    It is loaded when it is first asked for: a warm-up needs none.
    """

    def __init__(self, model_dir: Path, *, kept: Path | None = None, device: str = "cpu") -> None:
        self._model_dir = model_dir
        self._kept = kept
        self._device = device

    @classmethod
    def named(cls, model_dir: Path, family: Family, *, device: str = "cpu") -> Reference:
        """A model of one's own choice; it has to see as the trained one does."""
        other = load_family(model_dir)
        if (other.name, other.recipe, other.placeholders) != (family.name, family.recipe, family.placeholders):
            raise CheckpointError(
                f"the reference is of the family {other.name} and sees other pictures or tokens than the policy, "
                f"which is of the family {family.name}",
                remedy="Name a model of the same line in loss.reference",
            )
        return cls(model_dir, device=device)

    def keep(self, weights: Path, version: int) -> None:
        """Keep the weights of this version from the folder where engines find them, if they are the ones to keep."""
        if self._kept is None or version != FIRST:
            return
        with whole_folder(version_folder(self._kept, FIRST)) as draft:
            shutil.copytree(version_folder(weights, FIRST), draft, dirs_exist_ok=True)

    @cached_property
    def model(self) -> Any:
        """In evaluation mode, without gradients."""
        model = load_model(self._model_dir, device=self._device).requires_grad_(False)
        if self._kept is not None:
            shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
            model.load_state_dict(read_weights(self._kept, FIRST, shapes))
        return model
