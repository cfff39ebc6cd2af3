"""A model as it is trained: loaded in float32 and dressed as the configuration says.

Everything here is done once, before an optimizer is made or FSDP parts the model. What is dressed stays the
checkpoint's own transformers model: it is called, sharded and saved as it would be without.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filmroll.errors import ConfigError, TrainingError
from filmroll.materialize.feed import load_model, vision_tower
from filmroll.train.step import TrainerConfig

if TYPE_CHECKING:
    import torch

_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.", ".lora_B."
"""In the names that peft gives to a layer with an adapter: its own weight, and the adapter's two."""


def training_model(model_dir: Path, config: TrainerConfig, *, device: str = "cpu") -> Any:
    """The model of a checkpoint, ready to be trained; what is not to be trained requires no gradient."""
    model = load_model(model_dir, device=device)
    if config.freeze_vision:
        vision_tower(model).requires_grad_(False)
    if config.lora_rank:
        _adapt(model, config)
    if config.gradient_checkpointing:
        _recompute(model)
    return model


def trainable(model: Any) -> list[torch.nn.Parameter]:
    """What an optimizer is for."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def merged(tensors: Iterable[tuple[str, torch.Tensor]], config: TrainerConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """The same tensors under the checkpoint's own names, adapters added to the weights that they adapt.

    New tensors: those that are trained stay apart. Without adapters all pass as they are.
    """
    waiting: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in tensors:
        mark = next((mark for mark in (_BASE, _DOWN, _UP) if mark in name), None)
        if mark is None:
            yield name, value
            continue
        layer, _, part = name.partition(mark)
        if mark == _BASE and part != "weight":
            yield f"{layer}.{part}", value
            continue
        parts = waiting.setdefault(layer, {})
        parts[mark] = value
        if len(parts) == 3:
            del waiting[layer]
            yield f"{layer}.weight", parts[_BASE] + parts[_UP] @ parts[_DOWN] * _scale(config)


def _scale(config: TrainerConfig) -> float:
    return config.lora_alpha / config.lora_rank


def _adapt(model: Any, config: TrainerConfig) -> None:
    """Hang an adapter on each layer that is to have one, and freeze all else."""
    import torch

    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(
            "trainer.lora_rank needs peft, which is not installed", remedy="pip install 'filmroll[lora]'"
        ) from error
    layers = _layers(model, config.lora_targets, frozen=config.freeze_vision)
    # In a box without a model type: by that of a mixture, peft would adapt stacked experts in place of named layers.
    box = torch.nn.ModuleDict({"policy": model})
    targets = [f"policy.{name}" for name in layers]
    adapter = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=0.0, target_modules=targets)
    # The same beginnings in every process, whatever it has drawn before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inject_adapter_in_model(adapter, box)


def _layers(model: Any, targets: Collection[str], *, frozen: bool) -> list[str]:
    """The names of the linear layers to adapt: the language model's, or wherever a name ends in one of the targets.

    Never the language head, which many models share with their embeddings, and nothing in a frozen tower.
    """
    import torch

    below = model.get_decoder() if not targets else model
    passed = {id(model.get_output_embeddings())}
    if frozen:
        passed |= {id(module) for module in vision_tower(model).modules()}
    inside = {id(module) for module in below.modules()} - passed
    linear = {
        name: name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and id(module) in inside
    }
    found = [name for name in linear if not targets or any(f".{name}".endswith(f".{one}") for one in targets)]
    missed = [one for one in targets if not any(f".{name}".endswith(f".{one}") for name in found)]
    if missed or not found:
        raise ConfigError(
            f"no linear layer's name ends in {missed[0] if missed else 'anything'!r}",
            remedy=f"This model's end in {', '.join(sorted(set(linear.values())))[:200]}; change trainer.lora_targets",
        )
    return found


def _recompute(model: Any) -> None:
    """Have each layer forget what it made, and make it again in the backward pass.

    transformers does so in training mode alone. Only the layers themselves are told that they are in it:
    what is inside them stays in evaluation mode, without dropout, so that logprobs are those of the engine. No layer
    draws random numbers, so none need be drawn again.
    """
    from torch.utils.checkpoint import checkpoint
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise TrainingError(
            f"no layer of {type(model).__name__} can be computed again",
            remedy="Set trainer.gradient_checkpointing to false",
        )
    for layer in layers:
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        layer.gradient_checkpointing = layer.training = True
