"""What vLLM was told at its start, as far as each of its processes wants to know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BACKEND = "filmroll"
"""What `--weight-transfer-config` calls weights that come through a folder."""
CONNECTOR = "filmroll"
"""What `VLLM_MEDIA_CONNECTOR` calls what fetches stored images."""


def told(vllm_config: Any) -> Any:
    """What vLLM was told for filmroll, None for nothing."""
    told = vllm_config.additional_config
    return told.get("filmroll") if isinstance(told, Mapping) else None


def model_name(vllm_config: Any) -> str:
    """The folder that is served, or its name on the hub."""
    model, revision = vllm_config.model_config.model, vllm_config.model_config.revision
    return f"{model}@{revision}" if revision else str(model)
