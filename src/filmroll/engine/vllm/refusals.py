"""What vLLM finds wrong with a request before it reaches the endpoint, said as filmroll says it.

vLLM's own words name neither the image nor the field as filmroll's clients know them. A request
without references is left to vLLM, and so is what only vLLM finds wrong.
"""

from __future__ import annotations

from functools import wraps
from types import ModuleType
from typing import Any

from filmroll.engine.http import error_answer
from filmroll.engine.statistics import shared_statistics
from filmroll.engine.vllm.inside.requests import PREFIXES
from filmroll.errors import RequestError
from filmroll.wire.generate import request_from

GENERATE = "/inference/v1/generate"
HANDLER = "validation_exception_handler"


def install(module: ModuleType) -> None:
    """Stand before the module's handler of such errors, once."""
    theirs = getattr(module, HANDLER)
    if hasattr(theirs, "__wrapped__"):
        return

    @wraps(theirs)
    async def answer(request: Any, error: Any) -> Any:
        ours = refusal(error.body) if request.url.path.endswith(GENERATE) else None
        if ours is None:
            return await theirs(request, error)
        shared_statistics().reject(ours.code)
        return error_answer(ours)

    setattr(module, HANDLER, answer)


def refusal(body: Any) -> RequestError | None:
    """What breaks the contract of a request with references; None where nothing of ours does."""
    features = body.get("features") if isinstance(body, dict) else None
    data = features.get("kwargs_data") if isinstance(features, dict) else None
    if not isinstance(data, dict) or not any(_is_ours(slots) for slots in data.values()):
        return None
    try:
        request_from({"token_ids": body.get("token_ids"), "sampling_params": {}, "features": features})
    except RequestError as error:
        return error
    return None


def _is_ours(slots: Any) -> bool:
    """Whether any slot of a list is a reference, or null."""
    return isinstance(slots, list) and any(
        slot is None or (isinstance(slot, str) and slot.startswith(PREFIXES)) for slot in slots
    )
