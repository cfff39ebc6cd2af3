"""An image that travels developed: its arrays beside the samples that show it, in mode processed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt

from filmroll.image import Digest
from filmroll.wire.descriptor import Fingerprint, Name
from filmroll.wire.transport.tensors import Tensor


class ProcessedImage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A distinct image by its identity, and of what `family.pixels(..., "uint8")` makes of it what a forward takes.

    Levels have one temporal copy: they are a quarter of the float32 values that a model is fed, an eighth of
    those in two copies.
    """

    sha256: Digest
    recipe: Fingerprint
    arrays: dict[Name, Tensor]
    checksum: Digest
    """Of all the rest: no arrays are taken for those of another image."""

    @classmethod
    def of(cls, identity: tuple[str, str], arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        return cls(*identity, dict(arrays), _checksum(identity, arrays))

    @property
    def identity(self) -> tuple[str, str]:
        """As `ImageDescriptor.identity`."""
        return self.sha256, self.recipe

    @property
    def is_whole(self) -> bool:
        return self.checksum == _checksum(self.identity, self.arrays)


class LostImage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A distinct image by its identity, which whoever sends the samples could not have, and why."""

    sha256: Digest
    recipe: Fingerprint
    reason: str

    @property
    def identity(self) -> tuple[str, str]:
        """As `ImageDescriptor.identity`."""
        return self.sha256, self.recipe


def _checksum(identity: tuple[str, str], arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """The sha256 of the identity, and of each array's name, type, shape and bytes, by name."""
    total = hashlib.sha256("\0".join(identity).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"\0{name}\0{array.dtype.str}\0{arrays[name].shape}\0".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()
