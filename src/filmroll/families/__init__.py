"""How each line of models sees: layout arithmetic, pixel recipe, placeholder tokens, forward policy.

One file a family. A checkpoint's own files give the numbers; writers ask for layouts, readers for pixels.
A new family is one file, its class in FAMILIES, and its name in the parity tests; one of somebody else's
is a class that an entry point of the group `filmroll.families` names (docs/families.md)."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

from filmroll.errors import ConfigError, UnknownFamilyError
from filmroll.families.base import Family, Layout
from filmroll.families.checkpoint import read_checkpoint
from filmroll.families.gemma3 import Gemma3
from filmroll.families.gemma4 import Gemma4
from filmroll.families.glm4v import Glm4v
from filmroll.families.idefics3 import Idefics3
from filmroll.families.internvl import InternVL
from filmroll.families.kimi_k25 import KimiK25
from filmroll.families.llava_onevision import LlavaOnevision
from filmroll.families.pixtral import Pixtral
from filmroll.families.qwen_vl import QwenVL
from filmroll.families.recipe import BACKEND, Backend

FAMILIES: tuple[type[Family], ...] = (
    QwenVL,
    Glm4v,
    Gemma3,
    Gemma4,
    KimiK25,
    InternVL,
    Pixtral,
    Idefics3,
    LlavaOnevision,
)
GROUP = "filmroll.families"


def load_family(model_dir: str | Path, *, backend: Backend | None = None) -> Family:
    """The family of a checkpoint, by its folder or its name on the hub, configured by its files alone.

    No weights are read or fetched.

    `backend` says which of transformers' image processors the pixels equal: "pil", the default of
    most families, or "torchvision", which needs torch.
    """
    checkpoint = read_checkpoint(model_dir)
    if backend is not None:
        checkpoint = checkpoint.asked({BACKEND: backend})
    for family in every_family():
        if checkpoint.model_type in family.model_types:
            return family.from_checkpoint(checkpoint)
    known = ", ".join(model_type for family in every_family() for model_type in family.model_types)
    raise UnknownFamilyError(
        f"no family of filmroll covers the model type {checkpoint.model_type[:64]!r}",
        remedy=f"Known model types: {known}",
    )


def every_family() -> Iterator[type[Family]]:
    """filmroll's own families, then those that installed packages bring."""
    yield from FAMILIES
    for point in entry_points(group=GROUP):
        try:
            family = point.load()
        except Exception as error:
            raise ConfigError(
                f"the family {point.name!r} cannot be loaded from {point.value}",
                remedy="Mend or uninstall the package that brings it",
                private=f"{type(error).__name__}: {error}",
            ) from error
        if not (isinstance(family, type) and issubclass(family, Family)):
            raise ConfigError(
                f"the family {point.name!r} is no class that extends filmroll.families.base.Family",
                remedy=f"Name such a class in the entry point, {point.value} is none",
            )
        yield family


__all__ = ["FAMILIES", "Family", "Layout", "every_family", "load_family"]
