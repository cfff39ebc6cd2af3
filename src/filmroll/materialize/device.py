"""Where a model is: a device that torch can use on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filmroll.errors import ConfigError

if TYPE_CHECKING:
    import torch


def usable_device(name: str) -> torch.device:
    """The device of this name; a ConfigError where torch cannot use it here, in torch's own words."""
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"torch {torch.__version__} cannot use the device {name!r} here: {reason}",
            remedy="Take cpu, or a torch built for this machine's GPUs; CUDA_VISIBLE_DEVICES says which are seen",
        ) from error
    return device
