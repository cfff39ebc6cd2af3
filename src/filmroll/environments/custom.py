"""An environment of the user's own, found by its import path."""

from __future__ import annotations

import importlib
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from filmroll.errors import ConfigError
from filmroll.rollout.environment import Environment


class CustomEnvironmentConfig(BaseModel):
    """The `[environment]` section of an environment that filmroll does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: Literal["custom"]
    """Says that the environment is found by its import path."""
    import_path: str
    """`package.module:Name` of an Environment class, or of a function that returns one."""
    arguments: dict[str, Any] = {}
    """Keyword arguments that it is called with."""
    chance: float = 0.0
    """The mean reward of guessing, for the report."""

    @field_validator("import_path")
    @classmethod
    def _imported(cls, path: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", path):
            raise ValueError(f"{path!r} names nothing that can be imported: write package.module:Name")
        return path


def make_custom(config: CustomEnvironmentConfig) -> Environment:
    """Import and call what the configuration names; ConfigError where it is no environment."""
    module, _, name = config.import_path.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)(**config.arguments)
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"environment.import_path {config.import_path!r} cannot be used: {error}",
            remedy="It must be importable where the worker runs, and take environment.arguments",
        ) from error
    if not isinstance(made, Environment):
        raise ConfigError(
            f"{config.import_path!r} made a {type(made).__name__}", remedy="It must be a filmroll.rollout.Environment"
        )
    return made
