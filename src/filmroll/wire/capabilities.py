"""What an engine says of itself at `GET /inference/v1/capabilities`, so that nobody has to configure it twice."""

from __future__ import annotations

from typing import Literal

import msgspec

from filmroll.errors import EngineAnswerError

ROUTE = "/inference/v1/capabilities"

Way = Literal["references", "content_parts"]
"""How images get into a request: references in `features.kwargs_data`, or URLs in `content_parts`."""


class Capabilities(msgspec.Struct, frozen=True):
    """An engine without this route is a stock vLLM: it takes content parts and promises nothing else."""

    engine: str
    """`filmroll` for the embedded engine, `vllm` for a vLLM with the plugin."""
    engine_version: str
    model: str
    max_model_len: int
    ways: list[Way]
    family: str
    fingerprint: str
    recipes: list[str]
    """Recipes that its pixels can follow; a reference of another one is refused."""
    hashes: bool = False
    """Whether the sha256 of a reference that it has seen may stand in the reference's place."""
    weights: bool = False
    """Whether `update_weights` and `weight_info` are there."""


_capabilities = msgspec.json.Decoder(Capabilities)


def read_capabilities(body: bytes) -> Capabilities:
    try:
        return _capabilities.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise EngineAnswerError(f"what the engine says of itself cannot be read: {error}") from None
