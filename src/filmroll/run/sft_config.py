"""The `[sft]` section of a configuration: how conversations are learnt."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SftConfig(BaseModel):
    """The `[sft]` section of `filmroll sft`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    epochs: int = Field(default=1, ge=1)
    """How often each row is learnt from."""
    steps: int = Field(default=0, ge=0)
    """End after so many steps; 0 goes through all epochs."""
    batch_size: int = Field(default=32, ge=1)
    """Rows in a step."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """The highest learning rate."""
    final_learning_rate: float = Field(default=0.0, ge=0)
    """The learning rate that the last step comes close to."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises evenly to its highest."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after that; `constant` stays at the highest."""
    measure_every: int = Field(default=50, ge=1)
    """Steps between those after which the loss on held-out rows is measured; it is after the last, too."""

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, of so many."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        left = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * left
