"""Images that a request brings by URL: put into the store or found there, then references like any other's.

A client that knows nothing of references sends tokens with one pad for each image, and the images as
content parts. Here the tokens are expanded and the parts become references; what follows checks them
as if the client had sent them. Nothing is opened that is not the store's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from filmroll.engine.images.resolve import named
from filmroll.errors import ImageSourceError, RequestError
from filmroll.families.base import Family
from filmroll.image import INLINE, ImageRef
from filmroll.render import expand
from filmroll.store import Store
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.generate import ContentPart, GenerateRequest, referring

MAX_IMAGES = 1000
"""That one request may bring: each new one is a file in the store."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_UUID = re.compile(r"([0-9a-f]{64})-([0-9a-f]+)")


def stored(url: str, store: Store) -> ImageRef:
    """The image in the store that a client names by URL, or the one that it sends inside a data: URI.

    An http(s) URL is fetched where the store was opened for that. Of files and buckets only the
    store's own images are read.
    """
    if url[: len(INLINE)].lower() == INLINE:
        return store.put(url)
    scheme = _SCHEME.match(url)
    if scheme is None:
        raise ImageSourceError(
            "the image's url is none",
            remedy="Send a data: URI with the image in base64, or the url of an image in the engine's store",
        )
    if scheme[1].lower() not in ("http", "https"):
        return store.locate(url)
    if store.http is None:
        raise ImageSourceError(
            "this engine fetches no images",
            remedy="Send the image in a data: URI, or put it into the engine's store and send its url there",
        )
    return store.put(url)


def in_references(request: GenerateRequest, family: Family, store: Store, longest: int) -> GenerateRequest:
    """The request with its content parts as references, its tokens expanded; at most `longest` of them."""
    parts = request.content_parts
    if not parts:
        return request
    images = _described(parts, request.token_ids, family, store, longest)
    expanded = expand(request.token_ids, images, family)
    features = referring(images, expanded.offsets)
    return msgspec.structs.replace(
        request, token_ids=expanded.token_ids.tolist(), features=features, content_parts=None
    )


def _described(
    parts: Sequence[ContentPart], token_ids: Sequence[int], family: Family, store: Store, longest: int
) -> list[ImageDescriptor]:
    """What can be counted is counted before the first image is looked at."""
    if len(parts) > MAX_IMAGES:
        raise RequestError(f"it has {len(parts)} images, at most {MAX_IMAGES} are taken", field="content_parts")
    pads = token_ids.count(family.placeholders.pad)
    if pads != len(parts):
        raise RequestError(
            f"the tokens hold {pads} image pads, there are {len(parts)} content parts",
            remedy="Send the prompt with one pad for each image; the engine expands them",
            field="content_parts",
        )
    known: dict[str, ImageDescriptor] = {}
    images = []
    length = len(token_ids)
    for index, part in enumerate(parts):
        with named("content_parts", index):
            image = known.get(part.url) or family.describe(stored(part.url, store))
            _check_uuid(part.uuid, image)
        length += image.tokens - 1
        if length > longest:
            raise RequestError(
                f"with the images up to this one the prompt has {length} tokens, the model takes {longest}",
                field="content_parts",
                index=index,
            )
        known[part.url] = image
        images.append(image)
    return images


def _check_uuid(uuid: str | None, image: ImageDescriptor) -> None:
    """Ours says which image is meant, and how it is to be seen; those of others name nothing here."""
    match = _UUID.fullmatch(uuid or "")
    if match is not None and match.groups() != image.identity:
        raise RequestError(
            "its uuid is of another image or another pixel recipe than the one at its url",
            remedy="It is <sha256 of the stored image>-<recipe of the model's family>; or leave it out",
        )
