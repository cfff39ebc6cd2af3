"""The `[engine]` section of a configuration; `kind` says which."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from filmroll.train.step import Device


class _EngineConfig(BaseModel):
    """What is said of every kind of engine."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    replicas: int = Field(default=1, ge=1, le=64)
    """How many engines are started; conversations are spread over them."""
    restarts: int = Field(default=3, ge=0)
    """How often an engine that dies is started again within ten minutes; its next death ends the run."""
    max_batch: int = Field(default=64, ge=1)
    """Requests that go through the model together."""
    max_model_len: int = Field(default=4096, ge=16)
    """Longest prompt and completion together, in expanded tokens."""
    cache_mb: int = Field(default=256, ge=0)
    """Memory for decoded images, in MiB."""


class EmbeddedEngineConfig(_EngineConfig):
    """The `[engine]` section of filmroll's own engine."""

    kind: Literal["embedded"] = "embedded"
    """Which engine samples."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of each engine."""
    device: Device = "cpu"
    """Where the engine's model runs: `cpu`; `cuda`, each engine on a GPU of its own; or one GPU, as `cuda:1`."""


class VllmEngineConfig(_EngineConfig):
    """The `[engine]` section of vLLM's server with filmroll's plugin."""

    kind: Literal["vllm"]
    """Says that vLLM samples."""
    command: str = Field(default="vllm", min_length=1)
    """The vllm executable, by name or by path: it may lie in another environment."""
    gpus: int = Field(default=1, ge=0)
    """GPUs of each engine, which share its model, where the machine has any."""
    flags: tuple[str, ...] = ()
    """Further flags of `vllm serve`."""
    only_references: bool = True
    """Whether the generate endpoint takes images as references and in no other way."""


EngineConfig = Annotated[EmbeddedEngineConfig | VllmEngineConfig, Field(discriminator="kind")]
"""The `[engine]` section."""
