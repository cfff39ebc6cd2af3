"""Environments that come with filmroll, each with its own section of the configuration."""

from filmroll.environments.color_codeword import ColorCodeword, ColorCodewordConfig
from filmroll.rollout.environment import Environment


def make_environment(config: ColorCodewordConfig) -> Environment:
    """The environment that a configuration's `[environment]` section describes."""
    return ColorCodeword(config)
