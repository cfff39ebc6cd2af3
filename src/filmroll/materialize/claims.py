"""What a descriptor claims, against what the model's family says: nothing is believed."""

from __future__ import annotations

from filmroll.errors import FingerprintError, GridError, PlacementError, UnknownFamilyError
from filmroll.families.base import Family
from filmroll.wire.descriptor import ImageDescriptor

DESCRIBE = "Make descriptors with the describe() of the family that serves the model"


def check_kind(descriptor: ImageDescriptor, family: Family) -> None:
    """What can be told without the image: that the descriptor was made for this very family and recipe."""
    if descriptor.family != family.name:
        raise UnknownFamilyError(
            f"its family is {descriptor.family!r}, the model's is {family.name!r}", remedy=DESCRIBE
        )
    for what, claimed, ours in (
        ("modality", descriptor.modality, "image"),
        ("modality for vLLM", descriptor.vllm_modality, family.vllm_modality),
        ("layout fingerprint", descriptor.layout_fingerprint, family.fingerprint),
        ("pixel recipe", descriptor.recipe, family.recipe),
    ):
        if claimed != ours:
            raise FingerprintError(
                f"its {what} is {claimed!r}, the model's is {ours!r}", remedy=f"{DESCRIBE}, from the same checkpoint"
            )


def check_layout(descriptor: ImageDescriptor, family: Family, width: int, height: int) -> None:
    """What only the size of the picture can tell."""
    claimed, size = descriptor.image, (width, height)
    if (claimed.width, claimed.height) != size:
        raise GridError(
            f"it is said to be {claimed.width}x{claimed.height} pixels, it is {size[0]}x{size[1]}", remedy=DESCRIBE
        )
    layout = family.layout(*size)
    if descriptor.payload != layout.payload:
        raise GridError(
            f"its payload is {str(descriptor.payload)[:128]}, the stored image's is {layout.payload}", remedy=DESCRIBE
        )
    if descriptor.tokens != layout.tokens:
        raise PlacementError(
            f"it is said to take {descriptor.tokens} tokens, it takes {layout.tokens}", remedy=DESCRIBE
        )
