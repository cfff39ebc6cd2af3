"""What the parity suite needs to know about one checkpoint of a family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


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
    backends: tuple[str, ...] = ("pil", "torchvision")
    """Which of transformers' processors exist for it."""
    tolerance: float = 0.0
    """How far a pixel value may be from the processor's."""
