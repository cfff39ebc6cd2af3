"""The descriptor of one image, and the one form in which filmroll writes it.

The form is normative in docs/format.md. The keys outside `filmroll` are those that other systems
read; ours beside them let a reader check the pixels and not only the layout. What other systems
write is in foreign.py, references are in reference.py.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any

import msgspec

from filmroll.errors import DescriptorError, ReferenceFormatError, TensorsError
from filmroll.image import EXTENSIONS, Digest, ImageRef, Side, Uri, inline_media_type

KIND = "prime_raw_mm_item"
VERSION = 1
"""Of the part that is filmroll's own; older readers pass it over, newer writers are refused."""
FORBIDDEN_KEYS = frozenset({"pixel_values", "image_embeds", "image_features"})
MAX_VALUES = 1024
"""Values that are looked through for tensors; a written descriptor has about 20."""

Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.-]{1,64}\Z")]
Fingerprint = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16,64}\Z")]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**24)]
Grid = Annotated[list[Count], msgspec.Meta(min_length=3, max_length=3)]
Payload = Annotated[dict[Name, Annotated[list[Grid], msgspec.Meta(max_length=1)]], msgspec.Meta(max_length=8)]
"""What a family computes for an image beside its token count: grids, by the processor's names."""


class ImageDescriptor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """ImageRef + family + fingerprint + payload: all that a reader needs to build the pixels."""

    image: ImageRef
    family: Name
    layout_fingerprint: Fingerprint
    recipe: Fingerprint
    payload: Payload
    tokens: Count
    modality: Name = "image"
    vllm_modality: Name | None = None
    """What vLLM calls this modality, where its name is another."""

    @property
    def identity(self) -> tuple[str, str]:
        """What two descriptors share exactly when their pixels are the same."""
        return self.image.sha256, self.recipe


class Own(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part of a written descriptor that is filmroll's own."""

    v: Annotated[int, msgspec.Meta(ge=VERSION, le=VERSION)]
    recipe: Fingerprint
    tokens: Count
    width: Side
    height: Side
    nbytes: Annotated[int, msgspec.Meta(ge=1, le=2**32)]


class DescriptorForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: str
    modality: Name
    family: Name
    layout_fingerprint: Fingerprint
    payload: Payload
    raw_image_uri: Uri
    mm_hash: Digest
    filmroll: Own
    vllm_modality: Name | None = None


class ReferenceForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    family: Name
    fingerprint: Fingerprint
    mm_hash: Digest
    modality: Name
    payload: Payload
    raw_image_uri: Uri
    filmroll: Own
    vllm_modality: Name | None = None


def descriptor_json(descriptor: ImageDescriptor) -> dict[str, Any]:
    """The JSON-safe object that stands for the image in messages, traces and files."""
    image = descriptor.image
    named = {} if descriptor.vllm_modality is None else {"vllm_modality": descriptor.vllm_modality}
    return named | {
        "kind": KIND,
        "modality": descriptor.modality,
        "family": descriptor.family,
        "layout_fingerprint": descriptor.layout_fingerprint,
        "payload": descriptor.payload,
        "raw_image_uri": image.uri,
        "mm_hash": image.sha256,
        "filmroll": msgspec.to_builtins(_own(descriptor)),
    }


def reference_form(descriptor: ImageDescriptor) -> ReferenceForm:
    """What a reference says, before it is text."""
    return ReferenceForm(
        family=descriptor.family,
        fingerprint=descriptor.layout_fingerprint,
        mm_hash=descriptor.image.sha256,
        modality=descriptor.modality,
        payload=descriptor.payload,
        raw_image_uri=descriptor.image.uri,
        filmroll=_own(descriptor),
        vllm_modality=descriptor.vllm_modality,
    )


def descriptor_of(form: DescriptorForm | ReferenceForm) -> ImageDescriptor:
    """The descriptor that was written so; a DescriptorError if it carries what no descriptor does."""
    refuse_tensors(form.payload)
    fingerprint = form.layout_fingerprint if isinstance(form, DescriptorForm) else form.fingerprint
    return ImageDescriptor(
        image=ImageRef(
            uri=form.raw_image_uri,
            sha256=form.mm_hash,
            media_type=_media_type(form.raw_image_uri),
            width=form.filmroll.width,
            height=form.filmroll.height,
            nbytes=form.filmroll.nbytes,
        ),
        family=form.family,
        layout_fingerprint=fingerprint,
        recipe=form.filmroll.recipe,
        payload=form.payload,
        tokens=form.filmroll.tokens,
        modality=form.modality,
        vllm_modality=form.vllm_modality,
    )


def refuse_tensors(value: object) -> None:
    """Raise TensorsError, which is a TypeError too, if pixels hide anywhere inside a descriptor."""
    pending, seen = [value], 0
    while pending:
        item = pending.pop()
        inside: Any = ()
        if isinstance(item, dict):
            found = FORBIDDEN_KEYS & item.keys()
            if found:
                raise TensorsError(
                    f"an image descriptor carries no tensors, this one has {sorted(found)}",
                    remedy="Send a reference to the stored image; readers make the tensors themselves",
                )
            inside = item.values()
        elif isinstance(item, list | tuple):
            inside = item
        seen += len(inside)
        if seen > MAX_VALUES:
            raise DescriptorError(f"a descriptor holds at most {MAX_VALUES} values, this one holds more")
        pending.extend(inside)


def _own(descriptor: ImageDescriptor) -> Own:
    image = descriptor.image
    return Own(
        v=VERSION,
        recipe=descriptor.recipe,
        tokens=descriptor.tokens,
        width=image.width,
        height=image.height,
        nbytes=image.nbytes,
    )


def _media_type(uri: str) -> str:
    declared = inline_media_type(uri)
    if declared is not None:
        return declared
    ending = PurePosixPath(uri).suffix
    for media_type, extension in EXTENSIONS.items():
        if ending == extension:
            return media_type
    raise ReferenceFormatError(
        f"the image's uri ends in {ending[:16]!r}", remedy=f"One of {', '.join(EXTENSIONS.values())} is expected"
    )
