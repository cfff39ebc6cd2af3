"""One model over several processes: each keeps a part of every tensor, by torch's FSDP2.

Layers are groups of their own: a layer's parameters are gathered for its forward and its backward, and
its gradients summed over the ranks. What is in no layer, tied embeddings among it, is in the root's group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from filmroll.train.learning.ranks import Ranks


def shard(model: Any, tower: torch.nn.Module, ranks: Ranks, device: str) -> None:
    """Part the model among the ranks: each layer, the vision tower and the rest; alone it stays as it is."""
    if ranks.count == 1:
        return
    mesh = init_device_mesh(torch.device(device).type, (ranks.count,))
    for module in (*_layers(model), tower, model):
        fully_shard(module, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Not the mean: a loss is divided by what all ranks train. Gloo multiplies nothing on the way.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def whole(value: torch.Tensor) -> torch.Tensor:
    """The tensor of which each rank has a part; all of them have to ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gathered(tensors: Mapping[str, torch.Tensor], *, keep: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor whole and on the CPU, one after the other, for who keeps it; all ranks have to go to the end."""
    for name, value in tensors.items():
        full = whole(value.detach())
        if keep:
            yield name, full.to("cpu", copy=True).contiguous()


def _layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Those of text and vision: what transformers recomputes one at a time under gradient checkpointing."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
