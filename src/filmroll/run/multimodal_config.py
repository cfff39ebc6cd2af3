"""The `[multimodal]` section of a configuration: where images are kept, how they travel, and what is taken for one."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from filmroll.store import HttpSources, Limits
from filmroll.store.cache import CACHE_BYTES


class MultimodalConfig(BaseModel):
    """The `[multimodal]` section."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    mode: Literal["raw", "inline", "processed"] = "raw"
    """How images travel: as references into the store; inside their references, without a store; or to the trainer as
    arrays beside the samples."""
    store: str = ""
    """Where images are kept, a folder or a bucket's URL; empty means assets/images in the run's folder."""
    cache: str = ""
    """A folder on a local disk where images that were read from `store` are kept; empty means none is."""
    cache_mb: int = Field(default=CACHE_BYTES >> 20, ge=1)
    """How much of the disk the cache takes, in MiB."""
    max_bytes: int = Field(default=Limits().max_bytes, ge=1)
    """Largest file that is taken as an image."""
    max_pixels: int = Field(default=Limits().max_pixels, ge=1)
    """Most pixels of an image."""
    max_side: int = Field(default=Limits().max_side, ge=1)
    """Longest side of an image, in pixels."""
    missing_image: Literal["error", "zero_loss"] = "error"
    """What an image does that cannot be had when it is to be trained on: it ends the run, or its samples count in no
    loss."""
    missing_share: float = Field(default=0.5, ge=0, le=1)
    """Largest share of a step's samples that may count in no loss for that."""
    fetch: Literal["never", "https", "http"] = "never"
    """From which URLs images are fetched: none, https alone, or http as well."""
    fetch_seconds: float = Field(default=HttpSources().max_seconds, gt=0, allow_inf_nan=False)
    """Longest time for fetching one, redirects included."""
    fetch_private: bool = False
    """Fetch from addresses that are not public, too, such as those of this network."""

    @model_validator(mode="after")
    def _one_place(self) -> MultimodalConfig:
        if self.mode == "inline" and (self.store or self.cache):
            raise ValueError("mode inline keeps images nowhere: leave store and cache empty")
        return self

    @property
    def may_miss(self) -> float:
        """The share of a step's samples that may do without an image of theirs."""
        return self.missing_share if self.missing_image == "zero_loss" else 0.0
