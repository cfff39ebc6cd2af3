"""How each line of models sees: layout arithmetic, pixel recipe, placeholder tokens, forward policy.

One file a family. A checkpoint's own files give the numbers; writers ask for layouts, readers for pixels.
A new family is one file, its class in FAMILIES, and its name in the parity tests."""

from __future__ import annotations

from pathlib import Path

from filmroll.errors import UnknownFamilyError
from filmroll.families.base import Family, Layout
from filmroll.families.checkpoint import read_checkpoint
from filmroll.families.glm4v import Glm4v
from filmroll.families.qwen_vl import QwenVL

FAMILIES: tuple[type[Family], ...] = (QwenVL, Glm4v)


def load_family(model_dir: str | Path) -> Family:
    """The family of the checkpoint in a local folder, configured by its files; no weights are read."""
    checkpoint = read_checkpoint(model_dir)
    for family in FAMILIES:
        if checkpoint.model_type in family.model_types:
            return family.from_checkpoint(checkpoint)
    known = ", ".join(model_type for family in FAMILIES for model_type in family.model_types)
    raise UnknownFamilyError(
        f"no family of filmroll covers the model type {checkpoint.model_type[:64]!r}",
        remedy=f"Known model types: {known}",
    )


__all__ = ["FAMILIES", "Family", "Layout", "load_family"]
