"""What a request says about its images, read and checked before anything is loaded.

Every field here was written by somebody else. What breaks the contract is an error that names the
field and the image; what comes out can be fed to the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

from filmroll.engine.images.remembered import Remembered, digest_of
from filmroll.errors import FilmrollError, PlacementError, RequestError
from filmroll.families.base import Family
from filmroll.materialize.materializer import check_placements
from filmroll.materialize.sheet import Picture
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.feature_reference import FeatureReference, is_feature_reference, read_feature_reference
from filmroll.wire.foreign import ForeignDescriptor
from filmroll.wire.generate import Features, GenerateRequest, Placeholder
from filmroll.wire.receipt import Receipt
from filmroll.wire.reference import read_reference

Read: TypeAlias = ImageDescriptor | ForeignDescriptor | FeatureReference
"""What a reference says, in whichever form it came."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A request's images in prompt order."""

    pictures: tuple[Picture, ...] = ()
    receipt: Receipt = field(default_factory=Receipt)


@dataclass(frozen=True, slots=True)
class Claims:
    """What a request says about its images, in prompt order: whole in itself, not yet compared with any image."""

    descriptors: tuple[ImageDescriptor, ...] = ()
    spans: tuple[Placeholder, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    """The references themselves, by their digests."""
    field: str = ""
    """The request's field that holds the references."""


@dataclass(frozen=True, slots=True)
class References:
    """A request's references, each read by itself."""

    modality: str | None
    texts: Mapping[str, str] = field(default_factory=dict)
    """By their digests."""
    read: tuple[Read, ...] = ()


def read_references(request: GenerateRequest, remembered: Remembered) -> References:
    """Read what the request refers to; where a digest stands for a reference, what was seen under it before."""
    features = request.features
    modality = _modality(features)
    if features is None or modality is None:
        return References(None)
    hashes = features.mm_hashes[modality]
    slots = [None] * len(hashes) if features.kwargs_data is None else features.kwargs_data[modality]
    texts: dict[str, str] = {}
    read = []
    for index, (slot, digest) in enumerate(zip(slots, hashes, strict=True)):
        if slot is None:
            with named(f"features.mm_hashes.{modality}", index):
                text = remembered.text(digest)
        else:
            text = slot
        with named(f"features.kwargs_data.{modality}", index):
            one = read_feature_reference(text) if is_feature_reference(text) else read_reference(text)
            _check_agreement(one, modality, None if slot is None else digest, index)
        texts[digest_of(text)] = text
        read.append(one)
    return References(modality, texts, tuple(read))


def claims_of(
    request: GenerateRequest, references: References, descriptors: Sequence[ImageDescriptor], family: Family
) -> Claims:
    """Everything the request says about its images, compared as far as that needs no pixels."""
    modality = references.modality
    spans = request.features.mm_placeholders[modality] if request.features and modality else []
    for index, (descriptor, span) in enumerate(zip(descriptors, spans, strict=True)):
        _check_length(descriptor, modality or "", span, index)
    with named(f"features.mm_placeholders.{modality}" if modality else "token_ids"):
        check_placements(request.token_ids, [span.offset for span in spans], descriptors, family)
        _check_apart(request.token_ids, spans, family)
    return Claims(tuple(descriptors), tuple(spans), references.texts, f"features.kwargs_data.{modality}")


def _modality(features: Features | None) -> str | None:
    """The one modality that has images; a request has one or none."""
    used = [] if features is None else [name for name, hashes in features.mm_hashes.items() if hashes]
    if len(used) > 1:
        raise RequestError(f"it has images of {len(used)} modalities, a model has one", field="features.mm_hashes")
    return used[0] if used else None


def _check_agreement(read: Read, modality: str, digest: str | None, index: int) -> None:
    """The parallel lists speak of the same image; a digest that is of a reference speaks of nothing else."""
    if read.modality != modality:
        raise RequestError(
            f"the reference is of modality {read.modality!r}, it stands under {modality[:64]!r}",
            field=f"features.kwargs_data.{modality}",
            index=index,
        )
    if digest not in (None, read.image.sha256 if isinstance(read, ImageDescriptor) else read.mm_hash):
        raise RequestError(
            "it is not the digest of the image that the reference names",
            remedy="mm_hashes holds the whole sha256 of each stored image; of other systems' references, their mm_hash",
            field=f"features.mm_hashes.{modality}",
            index=index,
        )


def _check_length(descriptor: ImageDescriptor, modality: str, span: Placeholder, index: int) -> None:
    if span.length != descriptor.tokens:
        raise RequestError(
            f"the placeholder is {span.length} tokens long, the image is {descriptor.tokens}",
            field=f"features.mm_placeholders.{modality}",
            index=index,
        )


def _check_apart(token_ids: Sequence[int], spans: Sequence[Placeholder], family: Family) -> None:
    """A model that is told which tokens are an image's finds its extent by runs of them: two that touch would be one.

    Others have such images side by side, or with what begins and ends an image between their runs.
    """
    pad = family.placeholders.image
    for index, (one, two) in enumerate(pairwise(spans), start=1):
        end = one.offset + one.length
        if family.forward.marks and two.offset == end and token_ids[end - 1] == pad == token_ids[end]:
            raise PlacementError("no token stands between it and the image before it", index=index)


@contextmanager
def named(where: str, index: int | None = None) -> Iterator[None]:
    """Errors raised inside say which field of the request they belong to, unless they already do."""
    try:
        yield
    except FilmrollError as error:
        raise error.at(
            field=error.field or where, index=error.index if error.index is not None else index
        ) from error.__cause__
