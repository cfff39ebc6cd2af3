"""From the references of a request to verified pixels, before any model is concerned.

Every field here was written by somebody else. What breaks the contract is an error that names the
field and the image; what comes out can be fed to the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from filmroll.errors import FilmrollError, PlacementError, RequestError
from filmroll.families.base import Family
from filmroll.materialize.materializer import Materializer, check_placements
from filmroll.materialize.sheet import Picture
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.foreign import ForeignDescriptor
from filmroll.wire.generate import Features, GenerateRequest, Placeholder
from filmroll.wire.receipt import Receipt
from filmroll.wire.reference import read_reference


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
    field: str = ""
    """The request's field that holds the references."""


def resolve(request: GenerateRequest, family: Family, materializer: Materializer) -> Resolved:
    """Read and check everything the request says about images, then load and decode them."""
    claims = read_claims(request, family, materializer)
    if not claims.descriptors:
        return Resolved()
    with named(claims.field):
        materialized = materializer.load(claims.descriptors)
    return Resolved(materialized.pictures, materialized.receipt)


def read_claims(request: GenerateRequest, family: Family, materializer: Materializer) -> Claims:
    """Everything the request says about images, read and checked as far as that needs no image.

    Other systems' references need theirs: they do not say how many tokens it takes.
    """
    modality = _modality(request.features)
    where = f"features.mm_placeholders.{modality}" if modality else "token_ids"
    descriptors, spans = (
        _references(request.features, modality, materializer) if request.features and modality else ([], [])
    )
    with named(where):
        check_placements(request.token_ids, [span.offset for span in spans], descriptors, family)
        _check_apart(spans)
    return Claims(tuple(descriptors), tuple(spans), f"features.kwargs_data.{modality}")


def _modality(features: Features | None) -> str | None:
    """The one modality that has images; a request has one or none."""
    used = [] if features is None else [name for name, hashes in features.mm_hashes.items() if hashes]
    if len(used) > 1:
        raise RequestError(f"it has images of {len(used)} modalities, a model has one", field="features.mm_hashes")
    return used[0] if used else None


def _references(
    features: Features, modality: str, materializer: Materializer
) -> tuple[list[ImageDescriptor], list[Placeholder]]:
    where = f"features.kwargs_data.{modality}"
    if features.kwargs_data is None:
        raise RequestError(
            "the images have hashes and placeholders, but no references",
            remedy="Send the mmraw: reference of each image; this engine keeps none from earlier requests",
            field="features.kwargs_data",
        )
    spans = features.mm_placeholders[modality]
    descriptors = []
    for index, text in enumerate(features.kwargs_data[modality]):
        with named(where, index):
            read = read_reference(text)
            _check_agreement(read, modality, features.mm_hashes[modality][index], index)
            descriptor = materializer.complete(read)
            _check_length(descriptor, modality, spans[index], index)
        descriptors.append(descriptor)
    return descriptors, spans


def _check_agreement(read: ImageDescriptor | ForeignDescriptor, modality: str, digest: str, index: int) -> None:
    """The parallel lists speak of the same image."""
    if read.modality != modality:
        raise RequestError(
            f"the reference is of modality {read.modality!r}, it stands under {modality[:64]!r}",
            field=f"features.kwargs_data.{modality}",
            index=index,
        )
    if digest != (read.image.sha256 if isinstance(read, ImageDescriptor) else read.mm_hash):
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


def _check_apart(spans: list[Placeholder]) -> None:
    """Models find an image's extent by runs of placeholder tokens: two that touch would be one."""
    for index, (one, two) in enumerate(pairwise(spans), start=1):
        if two.offset == one.offset + one.length:
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
