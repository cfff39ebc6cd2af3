"""What the pretended GPU of the tests refuses and notes, as CUDA would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.pretended_gpu import pretended_gpu

MIXED: dict[str, Callable[[torch.Tensor], Any]] = {
    "sum": lambda here: here + torch.ones(4),
    "joined": lambda here: torch.cat([here, torch.ones(1, 4)]),
    "multiplied": lambda here: here @ torch.ones(4),
    "chosen": lambda here: here.index_select(0, torch.tensor([1])),
    "gathered": lambda here: here.gather(0, torch.zeros(1, 4, dtype=torch.long)),
    "embedded": lambda here: torch.nn.functional.embedding(torch.tensor([1]), here),
    "of the host by indices of the device": lambda here: torch.ones(4)[here[0].long()],
    "generator": lambda here: torch.rand(2, device=here.device, generator=torch.Generator()),
    "drawn in place": lambda here: here.uniform_(generator=torch.Generator()),
}


@pytest.mark.parametrize("name", MIXED)
def test_host_and_device_do_not_mix(name: str) -> None:
    with pretended_gpu(), pytest.raises(RuntimeError, match=r"same device|generator"):
        MIXED[name](torch.ones(3, 4, device="cuda"))


def test_but_numbers_and_indices_of_the_host_are_taken() -> None:
    with pretended_gpu() as gpu:
        here = torch.arange(6.0, device="cuda").view(2, 3)
        assert (here * torch.tensor(2.0))[torch.tensor([1])].tolist() == [[6.0, 8.0, 10.0]]
        assert here.is_cuda
        assert [one.partition(" at ")[0] for one in gpu.waits[:1]] == ["aten.index.Tensor by indices of the host"]


def test_no_array_is_made_of_what_is_on_the_device() -> None:
    with pretended_gpu():
        here = torch.ones(3, device="cuda")
        for way in (here.numpy, lambda: np.asarray(here)):
            with pytest.raises((RuntimeError, TypeError)):
                way()


@pytest.mark.parametrize(
    "wait",
    [
        lambda here: here[0].item(),
        lambda here: here.tolist(),
        lambda here: here.cpu(),
        lambda here: bool((here > 0).all()),
        lambda here: here[here > 0],
        lambda here: here.nonzero(),
        lambda here: torch.ones(3).to("cuda"),
        lambda here: torch.ones(3).to("cuda", non_blocking=True),
        lambda here: torch.tensor([1], device="cuda"),
        lambda here: here.copy_(torch.zeros(3)),
        lambda here: torch.bincount(here.long()),
    ],
)
def test_the_host_waits_once(wait: Callable[[torch.Tensor], Any]) -> None:
    with pretended_gpu() as gpu:
        here = torch.ones(3, device="cuda")
        before = len(gpu.waits)
        wait(here)
        assert len(gpu.waits) == before + 1


def test_it_does_not_wait_for_what_comes_from_pinned_memory_nor_for_arithmetic() -> None:
    with pretended_gpu() as gpu:
        here = torch.ones(3).pin_memory().to("cuda", non_blocking=True)
        here = torch.where(here > 0, here, torch.zeros_like(here)).sum() + torch.rand(3, device="cuda")
        here[:1] = 0
        assert gpu.waits == []
        assert [one.tolist() for one in gpu.sent] == [[1.0] * 3]


def test_its_random_numbers_are_its_own() -> None:
    with pretended_gpu():
        torch.manual_seed(0)
        host, device = torch.get_rng_state(), torch.cuda.get_rng_state()
        first = torch.rand(2, device="cuda").tolist()
        assert torch.equal(torch.get_rng_state(), host)
        torch.cuda.set_rng_state(device)
        assert torch.rand(2, device="cuda").tolist() == first


def test_autocast_is_that_of_cuda() -> None:
    with pretended_gpu():
        weight = torch.ones(2, 2, device="cuda", requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            assert (weight @ weight).dtype == torch.float32
        with torch.autocast("cuda", torch.bfloat16):
            made = weight @ weight
            assert (made.dtype, torch.softmax(made, -1).dtype) == (torch.bfloat16, torch.float32)
        made.sum().backward()
        assert weight.grad is not None
        assert (weight.grad.dtype, weight.grad.device.type) == (torch.float32, "cuda")


def test_afterwards_there_is_no_gpu() -> None:
    with pretended_gpu():
        pass
    assert not torch.cuda.is_available()
    with pytest.raises((AssertionError, RuntimeError)):
        torch.ones(1, device="cuda")
