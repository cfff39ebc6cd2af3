"""A prompt as a request, in the three ways: references, hashes of references, URLs of images."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from filmroll.render import Rendered
from filmroll.wire.capabilities import Way
from filmroll.wire.generate import ContentPart, GenerateRequest, SamplingParams, referring

NEVER = -1e9
"""The bias of a token that must not be sampled: finite, because JSON has no other numbers."""


def generate_request(
    prompt: Rendered,
    sampling: SamplingParams,
    *,
    way: Way = "references",
    model: str | None = None,
    request_id: str | None = None,
    priority: int = 0,
    cache_salt: str | None = None,
) -> GenerateRequest:
    """The request for a prompt; by references its tokens are expanded, by content parts the engine expands them.

    Vision tokens cannot be sampled, whatever `sampling` says: nothing would be there to fill them.
    """
    token_ids, features, parts = prompt.logical, None, None
    if way == "references":
        expanded = prompt.expanded()
        token_ids, features = expanded.token_ids.tolist(), referring(prompt.images, expanded.offsets)
    elif prompt.images:
        parts = _content_parts(prompt)
    return GenerateRequest(
        token_ids=token_ids,
        sampling_params=_without_vision_tokens(sampling, prompt),
        model=model,
        features=features,
        content_parts=parts,
        request_id=request_id,
        return_token_ids=way == "content_parts",
        priority=priority,
        cache_salt=cache_salt,
    )


def references_of(request: GenerateRequest) -> list[str]:
    """All references of a request that was written here."""
    data = request.features.kwargs_data if request.features is not None else None
    return [text for texts in (data or {}).values() for text in texts if text is not None]


def by_hashes(request: GenerateRequest, known: Mapping[str, str]) -> GenerateRequest:
    """The request with hashes in place of the references that are `known`: their texts, each with its hash."""
    features = request.features
    if not known or features is None or features.kwargs_data is None:
        return request
    hashes = {
        modality: [known.get(text or "", own) for text, own in zip(texts, features.mm_hashes[modality], strict=True)]
        for modality, texts in features.kwargs_data.items()
    }
    data = {
        modality: [None if text in known else text for text in texts]
        for modality, texts in features.kwargs_data.items()
    }
    features = msgspec.structs.replace(features, mm_hashes=hashes, kwargs_data=data)
    return msgspec.structs.replace(request, features=features)


def _content_parts(prompt: Rendered) -> list[ContentPart]:
    """Where each image lies, under a name that says which bytes these are and how they are to be seen."""
    return [ContentPart(image.image.uri, uuid=f"{image.image.sha256}-{image.recipe}") for image in prompt.images]


def _without_vision_tokens(sampling: SamplingParams, prompt: Rendered) -> SamplingParams:
    never = dict.fromkeys(prompt.family.placeholders.unsampled, NEVER)
    return msgspec.structs.replace(sampling, logit_bias=(sampling.logit_bias or {}) | never)
