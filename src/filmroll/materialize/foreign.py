"""Descriptors of other systems made whole: what they claim is compared with the image, the rest is worked out.

What comes out is an ordinary descriptor, for which everything is checked as for any other.
"""

from __future__ import annotations

from filmroll.errors import FingerprintError, GridError, UnknownFamilyError
from filmroll.families.base import Family
from filmroll.store.store import Store
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.foreign import ForeignDescriptor

SAME = "Have its writer and this reader use the same checkpoint"


def completed(foreign: ForeignDescriptor, store: Store, family: Family) -> ImageDescriptor:
    """What `family.describe` says of the image, if nothing that the other system says is different."""
    if foreign.family != family.name:
        raise UnknownFamilyError(f"its family is {foreign.family!r}, the model's is {family.name!r}", remedy=SAME)
    modalities = {"image", family.vllm_modality}
    if foreign.modality not in modalities or foreign.vllm_modality not in modalities | {None}:
        raise FingerprintError(
            f"its modality is {foreign.modality!r}, for vLLM {foreign.vllm_modality!r}, "
            f"the model's is 'image', for vLLM {family.vllm_modality!r}",
            remedy=SAME,
        )
    if foreign.layout_fingerprint not in (family.fingerprint, family.first_fingerprint, None):
        raise FingerprintError(
            f"its layout fingerprint is {foreign.layout_fingerprint!r}, the model's is {family.fingerprint!r}",
            remedy=SAME,
        )
    described = family.describe(store.locate(foreign.locator, foreign.mm_hash))
    grids = {name: foreign.grids.get(name) for name in described.payload}
    if grids != described.payload:
        raise GridError(
            f"its grids are {str(foreign.grids)[:128]}, the stored image's are {described.payload}", remedy=SAME
        )
    return described
