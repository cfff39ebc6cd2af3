"""The three ways in which prompts carry images, chosen by one setting: the calls and their results are the same."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from filmroll.errors import ConfigError
from filmroll.families import load_family
from filmroll.families.base import Arrays
from filmroll.materialize import Materializer
from filmroll.render import Renderer, load_renderer
from filmroll.store import open_store
from filmroll.store.nowhere import URL as INLINE
from filmroll.wire.descriptor import ImageDescriptor

Mode = Literal["raw", "inline", "processed"]


def open_renderer(
    model_dir: str | Path, store: str | os.PathLike[str] = "", *, multimodal: Mode = "raw", **options: Any
) -> Renderer:
    """A checkpoint's renderer whose prompts carry images as `multimodal` says.

    raw: references into the store at that place. inline: references that hold their images; there is
    no place. processed: as raw, and `Rendered.features` are the tensors, for supervised training in a
    loop of one's own. `options` are those of `load_renderer`.
    """
    if multimodal not in ("raw", "inline", "processed"):
        raise ConfigError(f"multimodal is {multimodal!r}", remedy='It is "raw", "inline" or "processed"')
    if bool(store) == (multimodal == "inline"):
        raise ConfigError(
            f"multimodal {multimodal!r} {'keeps images nowhere' if store else 'keeps images in a store'}",
            remedy="Leave store out" if store else "Name a store",
        )
    place = open_store(store or INLINE)
    if multimodal != "processed":
        return load_renderer(model_dir, place, **options)
    materializer = Materializer(place, load_family(model_dir))

    def tensors(images: Sequence[ImageDescriptor]) -> Arrays:
        return materializer.load(images).arrays

    return load_renderer(model_dir, place, process=tensors, **options)
