"""What other systems say of an image: less than filmroll does, so a reader has more to find out.

They give no recipe, no token count, no size and no length, often a cut hash, and the image under one
of five names. docs/format.md has a table of their forms and of what is checked for each.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from filmroll.errors import ReferenceFormatError
from filmroll.image import MAX_INLINE_BYTES
from filmroll.wire.descriptor import Fingerprint, Name, refuse_tensors

Hash = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16,64}\Z")]
"""The first digits of the sha256 of the image's bytes, or all."""

Locator = Annotated[str, msgspec.Meta(min_length=1, max_length=2 * MAX_INLINE_BYTES)]

_Loose = Annotated[dict[Name, Any], msgspec.Meta(max_length=8)]


class ForeignDescriptor(msgspec.Struct, frozen=True):
    """An image as another system describes it. Nothing of it is believed; what it leaves out is None.

    `Materializer.complete` makes an ImageDescriptor of it, or an error.
    """

    locator: str
    """The name of a file in the store's folder, a uri, or a data: URI that holds the image."""
    family: str
    grids: dict[str, list[list[int]]]
    """What of the payload can be checked."""
    layout_fingerprint: str | None = None
    mm_hash: str | None = None
    modality: str = "image"
    vllm_modality: str | None = None


class _Located(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What descriptors and references of other systems have in common, through all their versions."""

    family: Name
    payload: _Loose
    modality: Name = "image"
    vllm_modality: Name | None = None
    mm_hash: Hash | None = None
    raw_image_uri: Locator | None = None
    raw_image_data: Locator | None = None
    raw_image_id: Locator | None = None
    raw_uri: Locator | None = None

    @property
    def locators(self) -> set[str]:
        """Where the image is said to be; one place may be named under two keys."""
        said = (self.raw_image_uri, self.raw_image_data, self.raw_image_id, self.raw_uri)
        return {locator for locator in said if locator is not None}


class ForeignDescriptorForm(_Located, frozen=True, kw_only=True):
    kind: str
    version: Literal[1] = 1
    layout_fingerprint: Fingerprint | None = None
    raw_ref: Locator | None = None
    """A whole reference, which says all the rest once more."""
    marker: Literal["raw_image"] = msgspec.field(default="raw_image", name="_prime_rl_image_ref")


class ForeignReferenceForm(_Located, frozen=True, kw_only=True):
    mm_hash: Hash
    fingerprint: Fingerprint
    run_id: Name | None = None


class ColonForm(msgspec.Struct, frozen=True, array_like=True):
    """The older of two forms that are called v2: fields between colons, the payload in base64."""

    run_id: Name
    family: Name
    fingerprint: Fingerprint
    modality: Name
    mm_hash: Hash
    raw_image_id: Name
    payload: _Loose

    def reference(self) -> ForeignReferenceForm:
        return ForeignReferenceForm(**msgspec.structs.asdict(self))


def foreign_of(form: ForeignDescriptorForm | ForeignReferenceForm) -> ForeignDescriptor:
    """What such a form says; a ReferenceFormatError if it names no image, or two."""
    refuse_tensors(form.payload)
    if len(form.locators) != 1:
        raise ReferenceFormatError(
            f"it names {len(form.locators)} images",
            remedy="One of raw_image_uri, raw_image_data, raw_image_id and raw_uri says where the image is",
        )
    fingerprint = form.fingerprint if isinstance(form, ForeignReferenceForm) else form.layout_fingerprint
    return ForeignDescriptor(
        locator=form.locators.pop(),
        family=form.family,
        grids=grids_of(form.payload),
        layout_fingerprint=fingerprint,
        mm_hash=form.mm_hash,
        modality=form.modality,
        vllm_modality=form.vllm_modality,
    )


def grids_of(payload: dict[str, Any]) -> dict[str, list[list[int]]]:
    """Grids, which are written with or without a list around them; other values say nothing of an image's layout."""
    inner = {name: value[0] if _is_nested(value) else value for name, value in payload.items()}
    return {name: [value] for name, value in inner.items() if _is_grid(value)}


def _is_nested(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1 and isinstance(value[0], list)


def _is_grid(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 3 and all(type(side) is int and 1 <= side <= 2**24 for side in value)
    )
