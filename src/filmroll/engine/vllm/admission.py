"""What vLLM is not given, because it would fail on it, or answer for less than was sent."""

from __future__ import annotations

from typing import Any

from filmroll.engine.vllm.inside import requests
from filmroll.errors import PlacementError, RequestError
from filmroll.families.base import Placeholders


def check(request: Any, placeholders: Placeholders | None, *, only_references: bool) -> None:
    """Refuse a request without references: for its images if there may be none, or if they do not add up.

    Without a store the model's placeholders are not known.
    """
    check_id(request)
    if placeholders is not None:
        _check_parts(request, placeholders.pad)
    field = requests.other_images(request) if only_references else None
    if field is not None:
        raise RequestError(
            "this server takes images as references and in no other way",
            remedy="Send the mmraw: reference of each image in features.kwargs_data",
            field=field,
        )
    if only_references and placeholders is not None:
        _check_blind(request, placeholders.image)


def check_id(request: Any) -> None:
    """vLLM repeats it in its answer, and fails where it cannot be written."""
    try:
        request.request_id.encode()
    except UnicodeEncodeError:
        raise RequestError("it holds half of a character", field="request_id") from None


def _check_blind(request: Any, placeholder: int) -> None:
    """vLLM answers a prompt that shows nothing where an image should be."""
    if placeholder in request.token_ids:
        raise PlacementError(
            f"token {request.token_ids.index(placeholder)} is an image placeholder that belongs to no image",
            remedy="Send a reference and a placement for every image in the prompt",
            field="token_ids",
        )


def _check_parts(request: Any, pad: int) -> None:
    """vLLM expands pads: with fewer than images it fails inside, with more it answers for some of them."""
    images, pads = requests.image_parts(request), request.token_ids.count(pad)
    if images is not None and images != pads:
        raise RequestError(
            f"the tokens hold {pads} image pads, there are {images} content parts",
            remedy="Send the prompt with one pad for each image; the engine expands them",
            field="content_parts",
        )
