"""What goes to a model's device: levels, in every family; the values that they become are made there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from filmroll.materialize import Materializer
from filmroll.materialize.feed import picture_inputs
from filmroll.materialize.sheet import Sheet
from tests.train.arithmetic import DEVICE
from tests.train.every_case import CASES, Ground


class Copies(TorchDispatchMode):
    """Notes what is copied to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") != args[0].device:
            self.seen.append(args[0])
        return func(*args, **(kwargs or {}))


def sheet_of(ground: Ground) -> Sheet:
    descriptors = [image.descriptor for sample in ground.samples for image in sample.images]
    return Sheet.of(Materializer(ground.store, ground.family).load(descriptors).pictures)


@pytest.mark.parametrize("case", sorted(CASES))
def test_only_levels_are_copied(case: str, tmp_path: Path) -> None:
    """To a device that keeps shapes and no numbers, so that the path of every device but the host's is taken."""
    ground = Ground.of(case, tmp_path)
    sheet = sheet_of(ground)
    levels = sum(array.nbytes for one in sheet.distinct for array in one.arrays.values() if array.dtype == "uint8")
    with Copies() as copies:
        made = picture_inputs(ground.family, sheet, device="meta")
    floats = [one for one in copies.seen if one.is_floating_point()]
    assert all(one.shape == ground.family.table.shape for one in floats), "nothing but the table of levels"
    assert sum(one.nbytes for one in copies.seen if one.dtype == torch.uint8) >= levels
    here = picture_inputs(ground.family, sheet)
    assert {name: (value.shape, value.dtype) for name, value in made.items()} == {
        name: (value.shape, value.dtype) for name, value in here.items()
    }


@pytest.mark.gpu
@pytest.mark.parametrize("case", sorted(CASES))
def test_a_gpu_has_the_same_values(case: str, tmp_path: Path) -> None:
    ground = Ground.of(case, tmp_path)
    sheet = sheet_of(ground)
    here = picture_inputs(ground.family, sheet)
    for name, value in picture_inputs(ground.family, sheet, device=DEVICE).items():
        assert torch.equal(value.cpu(), here[name]), name
