"""Where a model is: a device that torch can use on this machine, and how things get there."""

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


def sent(tensor: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """A tensor of the host where the model is.

    A GPU takes it from locked memory, which torch keeps until it has, and the host goes on: from other memory
    it would first wait for all that the GPU has yet to do.
    """
    import torch

    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
