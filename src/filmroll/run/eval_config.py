"""The `[eval]` section of a configuration: how a model is evaluated."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EvalConfig(BaseModel):
    """The `[eval]` section of `filmroll eval`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    episodes: int = Field(default=100, ge=1)
    """Different episodes; which ones they are follows from the seed."""
    samples: int = Field(default=1, ge=1)
    """Rollouts of each episode."""
    batch: int = Field(default=25, ge=1)
    """Episodes that are played at a time, and make one row of the metrics."""
    passes: float = 1.0
    """A rollout passes if its reward is at least this; pass@k counts those."""
    urls: tuple[str, ...] = ()
    """Servers that run already and serve the model; empty means engines are started, as `[engine]` says."""
    served_name: str = ""
    """What those servers call the model; empty means its last part."""
