"""What hangs on vLLM's `ServingTokens` once it is wrapped: where plugin and routes find it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filmroll.engine.vllm.parts import ContentParts
    from filmroll.engine.vllm.references import References
    from filmroll.engine.vllm.weights import Weights

ATTRIBUTE = "filmroll"
"""Its presence on the class says that the class is wrapped."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What one API server serves beside vLLM's own."""

    references: References
    parts: ContentParts
    weights: Weights | None
    """None where weights stay what they are."""


def installed(serving: Any) -> Installed:
    found: Installed = getattr(serving, ATTRIBUTE)
    return found
