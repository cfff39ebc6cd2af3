"""A prompt that is prepared here, and how vLLM is given it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from filmroll.engine.vllm.inside.items import Item


def engine_input(
    request: Any,
    modality: str,
    sent: Sequence[Item | None],
    identities: Sequence[str],
    places: Sequence[tuple[int, np.ndarray[Any, Any]]],
) -> Any:
    """A prompt as the engine takes it; each place is an offset and which of the tokens after it take a feature."""
    import torch
    from vllm.inputs import mm_input
    from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

    ranges = [
        PlaceholderRange(offset, len(takes), None if takes.all() else torch.from_numpy(takes))
        for offset, takes in places
    ]
    return mm_input(
        prompt_token_ids=request.token_ids,
        mm_kwargs=MultiModalKwargsItems({modality: list(sent)}),
        mm_hashes={modality: list(identities)},
        mm_placeholders={modality: ranges},
        cache_salt=request.cache_salt,
    )


class Prepared:
    """Stands for the renderer of a request whose prompt is prepared."""

    def __init__(self, engine_input: Any) -> None:
        self._engine_input = engine_input

    async def preprocess_completion(self, *_args: Any, **_kwargs: Any) -> tuple[Any]:
        return (self._engine_input,)
