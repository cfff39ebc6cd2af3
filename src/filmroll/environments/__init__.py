"""Environments: those that come with filmroll, and the user's own by import path."""

from typing import Annotated

from pydantic import Field

from filmroll.environments.color_codeword import ColorCodeword, ColorCodewordConfig
from filmroll.environments.custom import CustomEnvironmentConfig, make_custom
from filmroll.rollout.environment import Environment

__all__ = ["ColorCodewordConfig", "CustomEnvironmentConfig", "EnvironmentConfig", "make_environment"]

EnvironmentConfig = Annotated[ColorCodewordConfig | CustomEnvironmentConfig, Field(discriminator="name")]
"""The `[environment]` section; `name` says which."""


def make_environment(config: ColorCodewordConfig | CustomEnvironmentConfig) -> Environment:
    """The environment that a configuration's `[environment]` section describes."""
    if isinstance(config, CustomEnvironmentConfig):
        return make_custom(config)
    return ColorCodeword(config)
