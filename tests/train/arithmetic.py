"""Where a model computes and in what numbers, and how far apart two ways to the same result may come out there.

On the CPU in bfloat16 the tests that ask for an `arithmetic` run always, in both kinds of number on a GPU with
`make test-gpu`. FILMROLL_TEST_DEVICE names another device for the latter.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from filmroll.materialize.feed import vision_tower
from filmroll.train.step import Dtype, TrainerConfig

DEVICE = os.environ.get("FILMROLL_TEST_DEVICE", "cuda")


@dataclass(frozen=True)
class Tolerance:
    """Mistakes are those that the tests make on purpose, or that were made once to find these numbers out."""

    gradients: float
    """Length of the difference of two gradients by the length of one: of the vision tower's, and of all others."""
    told: float
    """What a report says as a mean over the step's tokens."""
    token: float
    """What is said of one token: the largest ratio, the largest gap."""
    logprobs: float
    """Root mean square of the difference in logprobs."""
    engine: float
    """The same between an engine, whose weights are of this kind too, and a trainer, whose weights are float32."""
    loss: float
    norm: float
    """Losses and gradient norms in each of twenty steps, by themselves."""
    weights: float
    """How far weights are apart after twenty steps, by how far they have come."""


TOLERANCES: dict[Dtype, Tolerance] = {
    # Sums in another order: a few times 1e-7 in each. What is left is room for the kernels of a GPU.
    "float32": Tolerance(
        gradients=1e-4, told=1e-5, token=1e-4, logprobs=1e-5, engine=1e-5, loss=1e-4, norm=1e-3, weights=1e-3
    ),
    # A number has 8 bits, and what is a row of its own here is part of a longer one there. On a CPU gradients come
    # 0.008 apart (another picture in one place: 0.04 or more; attention between samples: 0.36; no clipping: 0.68), what
    # is told 7e-5 (0.004, 0.02, 0.06), engine and trainer 0.0025, of Gemma 4 0.01 (another picture: 0.01 to 0.4). Over
    # twenty steps losses come 0.001 apart, norms 0.05, weights 0.04 (moments lost: 0.02, 0.12, 0.55; a micro-batch left
    # out once: 0.6, 0.11, 0.31; gradients halved: norms 0.5).
    "bfloat16": Tolerance(
        gradients=0.02, told=1e-3, token=0.02, logprobs=2e-3, engine=6e-3, loss=5e-3, norm=0.1, weights=0.1
    ),
}


@dataclass(frozen=True)
class Arithmetic:
    """A device and a kind of number."""

    device: str
    dtype: Dtype

    def __str__(self) -> str:
        return f"{self.device}-{self.dtype}"

    @property
    def tolerance(self) -> Tolerance:
        return TOLERANCES[self.dtype]

    @property
    def exact(self) -> bool:
        """Whether the same work gives the same bits: a GPU adds up gradients in whatever order they come."""
        return self.device == "cpu"

    def config(self, config: TrainerConfig) -> TrainerConfig:
        return config.model_copy(update=self.dress)

    @property
    def dress(self) -> dict[str, Any]:
        """The same as fields of a trainer's configuration."""
        return {"device": self.device, "dtype": self.dtype}


EVERY_ARITHMETIC = [
    Arithmetic("cpu", "bfloat16"),
    *(pytest.param(Arithmetic(DEVICE, dtype), marks=pytest.mark.gpu) for dtype in TOLERANCES),
]


def rms(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).square().mean().sqrt())


def gradients_apart(model: Any, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """By the measure of `Tolerance.gradients`: the tower's or that of all others, whichever is farther apart."""
    assert found.keys() == expected.keys()
    within = {id(parameter) for parameter in vision_tower(model).parameters()}
    tower = {name for name, parameter in model.named_parameters() if id(parameter) in within}
    return max(
        farther(*({name: one[name] for name in names} for one in (found, expected)))
        for names in (expected.keys() & tower, expected.keys() - tower)
    )


def farther(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Length of the difference of all tensors together, by the length of what was expected."""
    apart = sum(float((found[name].double() - value.double()).square().sum()) for name, value in expected.items())
    return (apart / sum(float(value.double().square().sum()) for value in expected.values())) ** 0.5
