"""What every image processor is told alike, and the two hashes that a family's numbers make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from filmroll.errors import CheckpointError, ConfigError
from filmroll.families.checkpoint import Section
from filmroll.pixels import torchvision
from filmroll.pixels.patches import Channels, Rgb, level_table
from filmroll.pixels.resize import resize

Backend = Literal["pil", "torchvision"]

DECODER = "canonical-rgb8"
"""How stored bytes become a picture, by name: part of every recipe."""

BACKEND = "filmroll_backend"
"""The key under which `load_family` adds to an image processor's settings what its caller asks for."""

LANCZOS, BILINEAR, BICUBIC = 1, 2, 3
"""Pillow's filters by number, as checkpoints write them."""

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True)
class _Pixels:
    """One way to resize pictures and to make values of their levels."""

    resize: Callable[[Rgb, int, int, int], Rgb]
    level_table: Callable[[float | None, tuple[Channels, Channels] | None], npt.NDArray[np.float32]]
    filters: Collection[int]
    resizer: str
    """Whose arithmetic it is, and since when: part of every recipe."""


_BACKENDS: dict[str, _Pixels] = {
    "pil": _Pixels(resize, level_table, range(6), "pillow-13"),
    "torchvision": _Pixels(torchvision.resize, torchvision.level_table, torchvision.MODES, "torch-antialias"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tones:
    """How pictures are resized, and how their levels become values; a family's settings extend it.

    `backend` names the image processors of transformers that the values equal: those that work with
    Pillow, or those that work with torchvision.
    """

    backend: Backend = "pil"
    resample: int = BICUBIC
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Channels = OPENAI_MEAN
    image_std: Channels = OPENAI_STD

    def resize(self, rgb: Rgb, height: int, width: int) -> Rgb:
        """The picture at another size; the same picture if the size is its own."""
        return _BACKENDS[self.backend].resize(rgb, height, width, self.resample)

    def table(self) -> npt.NDArray[np.float32]:
        """[3, 256]: the float that each level of each channel becomes."""
        return _BACKENDS[self.backend].level_table(
            self.rescale_factor if self.do_rescale else None,
            (self.image_mean, self.image_std) if self.do_normalize else None,
        )


def read_tones(section: Section, default: Tones) -> dict[str, Any]:
    """The fields of Tones as an image processor's section sets them; `default` is what its class sets."""
    resample = section.whole("resample", default.resample, least=0)
    backend = section.text(BACKEND, default.backend)
    if backend not in _BACKENDS:
        raise ConfigError(
            f"there is no backend {backend[:64]!r} for pixels", remedy=f"One of {', '.join(_BACKENDS)} is"
        )
    if resample not in _BACKENDS[backend].filters:
        raise CheckpointError(
            f"{section.file}: resample is {resample}, by which {backend} does not resize",
            remedy=f"It must be one of {', '.join(map(str, _BACKENDS[backend].filters))}",
        )
    image_std = section.channels("image_std", default.image_std)
    if 0 in image_std:
        raise CheckpointError(f"{section.file}: image_std has a zero", remedy="It must divide; correct the file")
    return {
        "backend": backend,
        "resample": resample,
        "do_rescale": section.flag("do_rescale", default.do_rescale),
        "rescale_factor": section.number("rescale_factor", default.rescale_factor),
        "do_normalize": section.flag("do_normalize", default.do_normalize),
        "image_mean": section.channels("image_mean", default.image_mean),
        "image_std": image_std,
    }


def check_processor(section: Section, known: Sequence[str], *, switches: Mapping[str, bool]) -> None:
    """The image processor is one of `known`, and its switches stand as its class sets them: `switches`."""
    kind = section.text("image_processor_type", known[0])
    if kind not in known:
        raise CheckpointError(
            f"{section.file}: image_processor_type is {kind[:64]!r}",
            remedy=f"filmroll computes as one of {', '.join(known)} does",
        )
    for key, wanted in switches.items():
        if section.flag(key, wanted) is not wanted:
            raise CheckpointError(
                f"{section.file}: {key} is {json.dumps(not wanted)}",
                remedy=f"filmroll computes layouts for {json.dumps(wanted)} alone",
            )


def fingerprint(family: str, numbers: Mapping[str, Any]) -> str:
    """The numbers that layouts depend on, hashed as other systems hash them (docs/format.md)."""
    return _hash(f"image-layout:{_layout(family, numbers)}")


def first_fingerprint(family: str, numbers: Mapping[str, Any]) -> str:
    """The same numbers as those systems hashed them while their references were called v2 and v3."""
    return _hash(f"image-layout:v1:{_layout(family, numbers)}")


def recipe(family: str, settings: Mapping[str, Any]) -> str:
    """Everything that pixels depend on, hashed: two processes with one recipe build the same values."""
    resizer = _BACKENDS[settings["backend"]].resizer
    return _hash(_compact({"family": family, "decoder": DECODER, "resizer": resizer, "do_resize": True, **settings}))


def _layout(family: str, numbers: Mapping[str, Any]) -> str:
    return ":".join([family, *(f"{key}={_compact(numbers[key])}" for key in sorted(numbers))])


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
