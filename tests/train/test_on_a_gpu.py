"""The trainer on a pretended GPU: everything stands where it has to, and the numbers are the host's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from filmroll.materialize.feed import load_model
from filmroll.train.learning.forward import forward
from tests.pretended_gpu import pretended_gpu
from tests.train.every_case import CASES, SHOWN, Ground, gradients


def learnt(ground: Ground, model: Any, rows: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logprobs of the trained tokens and the gradients of their mean, as they are on the host."""
    out = forward(model, ground.family, ground.batch(model, rows))
    assert out.receipt.consumed == sum(map(len, SHOWN))
    out.logprobs.mean().backward()
    found = gradients(model)
    assert {one.device.type for one in (out.logprobs, *found.values())} == {model.device.type}
    return out.logprobs.detach().cpu(), {name: value.cpu() for name, value in found.items()}


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_model_type_learns_what_it_learns_on_the_host(case: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    ground = Ground.of(case, tmp_path)
    for rows in (ground.rows, [[one] for one in ground.samples]) if case == "tiny" else (ground.rows,):
        logprobs, expected = learnt(ground, load_model(ground.folder), rows)
        with pretended_gpu():
            there, found = learnt(ground, load_model(ground.folder, device="cuda"), rows)
        torch.testing.assert_close(there, logprobs, rtol=0, atol=1e-5)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)
