"""The descriptor of one image, and the `mmraw:` reference that carries it to an engine.

Both are normative in docs/format.md. The keys outside `filmroll` are those that other systems
read; ours beside them let a reader check the pixels and not only the layout.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any

import msgspec

from filmroll.errors import DescriptorError, ReferenceFormatError
from filmroll.image import EXTENSIONS, Digest, ImageRef, Side

KIND = "prime_raw_mm_item"
PREFIX = "mmraw:"
VERSION = 1
MAX_REFERENCE_CHARS = 16_384
"""Longest reference that is looked at; a written one has about 500."""
FORBIDDEN_KEYS = frozenset({"pixel_values", "image_embeds", "image_features"})

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


class _Extra(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part of a written descriptor that is filmroll's own; older readers pass it over."""

    v: Annotated[int, msgspec.Meta(ge=VERSION, le=VERSION)]
    recipe: Fingerprint
    tokens: Count
    width: Side
    height: Side
    nbytes: Annotated[int, msgspec.Meta(ge=1, le=2**32)]


class _DescriptorForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: str
    modality: Name
    family: Name
    layout_fingerprint: Fingerprint
    payload: Payload
    raw_image_uri: Annotated[str, msgspec.Meta(max_length=4096)]
    mm_hash: Digest
    filmroll: _Extra
    vllm_modality: Name | None = None


class _ReferenceForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    family: Name
    fingerprint: Fingerprint
    mm_hash: Digest
    modality: Name
    payload: Payload
    raw_image_uri: Annotated[str, msgspec.Meta(max_length=4096)]
    filmroll: _Extra
    vllm_modality: Name | None = None


_encoder = msgspec.json.Encoder(order="sorted")
_read_reference = msgspec.json.Decoder(_ReferenceForm)


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
        "filmroll": msgspec.to_builtins(_extra(descriptor)),
    }


def read_descriptor(value: object) -> ImageDescriptor:
    """A descriptor from its JSON-safe object; anything else is a DescriptorError."""
    refuse_tensors(value)
    try:
        form = msgspec.convert(value, _DescriptorForm)
    except msgspec.ValidationError as error:
        raise DescriptorError(
            f"this is no image descriptor: {error}", remedy="Send what descriptor_json() wrote"
        ) from None
    if form.kind != KIND:
        raise DescriptorError(f"kind is {form.kind[:64]!r}", remedy=f"A descriptor's kind is {KIND!r}")
    return _descriptor(form, form.layout_fingerprint)


def write_reference(descriptor: ImageDescriptor) -> str:
    """The one string that goes to an engine in `features.kwargs_data`: canonical, sorted, compact."""
    form = _ReferenceForm(
        family=descriptor.family,
        fingerprint=descriptor.layout_fingerprint,
        mm_hash=descriptor.image.sha256,
        modality=descriptor.modality,
        payload=descriptor.payload,
        raw_image_uri=descriptor.image.uri,
        filmroll=_extra(descriptor),
        vllm_modality=descriptor.vllm_modality,
    )
    return PREFIX + _encoder.encode(form).decode()


def read_reference(text: object) -> ImageDescriptor:
    """A descriptor from the string an engine was sent; anything else is a ReferenceFormatError."""
    if not isinstance(text, str) or not text.startswith(PREFIX):
        raise ReferenceFormatError(
            "an image reference is a string that begins with 'mmraw:'",
            remedy="Write it with write_reference(); tensors are not accepted",
        )
    if len(text) > MAX_REFERENCE_CHARS:
        raise ReferenceFormatError(f"the reference has {len(text)} characters, the limit is {MAX_REFERENCE_CHARS}")
    try:
        form = _read_reference.decode(text[len(PREFIX) :])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ReferenceFormatError(
            f"the reference cannot be read: {error}", remedy="Write it with write_reference()"
        ) from None
    return _descriptor(form, form.fingerprint)


def refuse_tensors(value: object) -> None:
    """Raise TypeError if pixels hide anywhere inside a descriptor."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            found = FORBIDDEN_KEYS.intersection(item)
            if found:
                raise TypeError(f"an image descriptor carries no tensors, this one has {sorted(found)}")
            pending.extend(item.values())
        elif isinstance(item, list | tuple):
            pending.extend(item)


def _extra(descriptor: ImageDescriptor) -> _Extra:
    image = descriptor.image
    return _Extra(
        v=VERSION,
        recipe=descriptor.recipe,
        tokens=descriptor.tokens,
        width=image.width,
        height=image.height,
        nbytes=image.nbytes,
    )


def _descriptor(form: _DescriptorForm | _ReferenceForm, fingerprint: str) -> ImageDescriptor:
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


def _media_type(uri: str) -> str:
    ending = PurePosixPath(uri).suffix
    for media_type, extension in EXTENSIONS.items():
        if ending == extension:
            return media_type
    raise ReferenceFormatError(
        f"the image's uri ends in {ending[:16]!r}", remedy=f"One of {', '.join(EXTENSIONS.values())} is expected"
    )
