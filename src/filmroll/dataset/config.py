"""The `[data]` section of a configuration: which conversations are learnt from, and how they are written."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DataConfig(BaseModel):
    """The `[data]` section of `filmroll sft`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    path: str = ""
    """A JSON lines file, or several by a pattern; parquet files; a folder that `datasets` saved; or a name on the hub,
    as org/name or org/name@revision."""
    split: str = "train"
    """Which split of a data set that has several."""
    subset: str = ""
    """Which configuration of a data set on the hub."""
    form: Literal["openai", "sharegpt"] = "openai"
    """How a message is written: with role and content, or with from and value."""
    messages: str = ""
    """The field of a row that holds its messages; empty means messages, or conversations in the form sharegpt."""
    images: str = ""
    """The field that holds its images, where they are not among the messages; empty means images, or else image."""
    tools: str = "tools"
    """The field that holds the tools that it tells the model of, if it tells of any."""
    placeholders: Literal["refuse", "image", "text"] = "refuse"
    """What a literal <image> in a text is: an error, the next of the row's images, or just text."""
    image_root: str = ""
    """Where relative paths of images begin; empty means the folder of the data."""
    answers: Literal["all", "last"] = "all"
    """Which of the assistant's messages are learnt."""
    bad: Literal["refuse", "skip"] = "refuse"
    """What a row that cannot be learnt from does: it ends the run, or is left out and counted."""
    shuffle: bool = True
    """Draw the order of rows anew for each epoch, by the seed."""
    held_out: int = Field(default=0, ge=0)
    """So many rows, drawn by the seed, are never learnt from: the loss is measured on them."""
    held_out_path: str = ""
    """Another data set for that, in place of rows of this one."""
    held_out_split: str = ""
    """Another split for that."""

    @model_validator(mode="after")
    def _one_held_out(self) -> DataConfig:
        if bool(self.held_out) + bool(self.held_out_path or self.held_out_split) > 1:
            raise ValueError("held_out draws rows of the data, held_out_path and held_out_split name others: choose")
        return self
