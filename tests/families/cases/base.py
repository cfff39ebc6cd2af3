"""What the parity suite needs to know about one checkpoint of a family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filmroll.families.recipe import Backend


@dataclass(frozen=True)
class Case:
    """One family under one configuration.

    `build` writes a whole tiny checkpoint into a folder, as a released one is laid out: config.json,
    preprocessor_config.json or processor_config.json, tokenizer files, chat template, and the random
    weights of the family's own transformers class. The suite takes everything else from the folder:
    ours through `load_family`, theirs through AutoImageProcessor, AutoProcessor and
    AutoModelForImageTextToText.
    """

    name: str
    build: Callable[[Path], object]
    edges: tuple[tuple[int, int], ...] = ()
    """(height, width): sizes at which this family's arithmetic turns over, tried beside the random ones."""
    units: tuple[int, ...] = ()
    """Sides of which multiples matter: multiples, halves of multiples, and what is one beside them are tried."""
    areas: tuple[int, ...] = ()
    """Areas in pixels that bound the arithmetic: sizes at and beside them are tried."""
    counted: Literal["tokens", "features"] | None = "features"
    """What the processor's cheap count of an image's tokens counts: the whole placeholder, or what takes a feature.

    None where it has no such count.
    """
    miscounted: tuple[int, ...] = ()
    """Heights at which that cheap count is wrong: there only what the processor really makes is compared."""
    flat: bool = False
    """Whether the processor is given all images in one list, not a list for each prompt."""
    backends: tuple[Backend, ...] = ("pil", "torchvision")
    """Which of transformers' image processors exist for it, the family's default first."""
    tolerance: float = 0.0
    """How far a pixel value may be from the processor's."""
    ignored: tuple[str, ...] = ()
    """Settings in the image processor's file that change nothing for this family's processor."""
