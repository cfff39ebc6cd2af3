"""What a request of vLLM's says about its images, and what is changed in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from filmroll.errors import RequestError
from filmroll.materialize.feed import bounded_bias
from filmroll.wire import feature_reference, reference
from filmroll.wire.generate import GenerateRequest, request_from

PREFIXES = (reference.PREFIX, feature_reference.PREFIX)
"""How what stands in an image's place begins if it is a reference."""
IMAGE_PART = "image_url"
"""The `type` of a content part that is an image."""


def has_references(request: Any) -> bool:
    """Whether any of a request's images is a reference; the others are vLLM's own business."""
    data = request.features.kwargs_data if request.features is not None else None
    return any(text is not None and text.startswith(PREFIXES) for texts in (data or {}).values() for text in texts)


def has_digests(request: Any) -> bool:
    """Whether any of a request's images has a hash and nothing more; what vLLM's own connectors bring is theirs."""
    features = request.features
    if features is None or features.mm_metadata is not None or request.ec_transfer_params:
        return False
    data = features.kwargs_data or {}
    return any(None in data.get(name, [None]) for name, hashes in features.mm_hashes.items() if hashes)


def other_images(request: Any) -> str | None:
    """The field in which a request brings images that are no references; None if it brings none."""
    if request.content_parts:
        return "content_parts"
    brought = request.features is not None and any(request.features.mm_hashes.values())
    return "features.kwargs_data" if brought else None


def image_parts(request: Any) -> int | None:
    """How many images a request brings as content parts; None if it brings none, or other things as well."""
    kinds = {part.get("type") for part in request.content_parts or ()}
    return len(request.content_parts) if kinds == {IMAGE_PART} else None


def pictures_by_url(request: Any) -> list[dict[str, Any]]:
    """The content parts that vLLM takes for images; others it reads as something else, or not at all."""
    return [part for part in request.content_parts or [] if part.get("type") == IMAGE_PART]


def with_uuids(request: Any, uuids: Sequence[str | None]) -> Any:
    """The request, its image parts under these names in vLLM's caches."""
    names = iter(uuids)
    parts = [part | {"uuid": next(names)} if part.get("type") == IMAGE_PART else part for part in request.content_parts]
    return request.model_copy(update={"content_parts": parts})


def wire_request(request: Any) -> GenerateRequest:
    """The parts of vLLM's request that say where its images are, as filmroll reads them."""
    features = request.features
    spans = {name: [vars(span) for span in spans] for name, spans in features.mm_placeholders.items()}
    named = {"mm_hashes": features.mm_hashes, "mm_placeholders": spans, "kwargs_data": features.kwargs_data}
    return request_from({"token_ids": request.token_ids, "sampling_params": {}, "features": named})


def forbid_tokens(request: Any, tokens: Sequence[int], bias: float) -> None:
    """Never sample these, whatever the request says."""
    params = request.sampling_params
    own = {token: bounded_bias(wanted) for token, wanted in (params.logit_bias or {}).items()}
    params.logit_bias = own | dict.fromkeys(tokens, bias)
    if params.allowed_token_ids is not None:
        # What is not allowed is lower still than what is biased.
        params.allowed_token_ids = [token for token in params.allowed_token_ids if token not in tokens]
        if not params.allowed_token_ids:
            raise RequestError(
                "it allows no token that may be sampled",
                remedy="Vision tokens are never sampled; allow others",
                field="sampling_params.allowed_token_ids",
            )
