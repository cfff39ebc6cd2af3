"""The torchvision way to resize and to make values; the parity suite has torchvision itself to compare with."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from filmroll.errors import ConfigError
from filmroll.pixels.resize import resize as pillow_resize
from filmroll.pixels.torchvision import MODES, level_table, resize

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture
def rgb() -> Any:
    return np.random.default_rng(1).integers(0, 256, (90, 150, 3), np.uint8)


@pytest.mark.parametrize("normalize", [None, (MEAN, STD)], ids=["as-it-is", "normalized"])
@pytest.mark.parametrize("rescale", [None, 1 / 255, 1 / 127.5, 0.01])
def test_the_table_is_torchs_own_arithmetic(rescale: float | None, normalize: Any) -> None:
    """Fused as transformers fuses it: mean and deviation grow, levels stay."""
    levels = torch.arange(256, dtype=torch.uint8).repeat(3, 1)
    if normalize is None:
        expected = levels.float() if rescale is None else levels * rescale
    else:
        unscale = 1.0 if rescale is None else 1.0 / rescale
        mean, std = (torch.tensor(channels)[:, None] * unscale for channels in normalize)
        expected = levels.to(torch.float32).sub_(mean).div_(std)
    table = level_table(rescale, normalize)
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, expected.numpy())


def test_a_picture_of_its_own_size_is_itself(rgb: Any) -> None:
    assert resize(rgb, 90, 150, 3) is rgb


@pytest.mark.parametrize("resample", MODES)
def test_it_is_an_antialiased_filter_like_pillows(rgb: Any, resample: int) -> None:
    for height, width in ((45, 31), (17, 150), (200, 170)):
        ours, theirs = (way(rgb, height, width, resample).astype(int) for way in (resize, pillow_resize))
        assert ours.shape == (height, width, 3)
        assert np.abs(ours - theirs).max() <= 3


def test_how_a_picture_lies_in_memory_does_not_matter(rgb: Any) -> None:
    small = resize(rgb, 30, 40, 3)
    turned = np.ascontiguousarray(rgb.transpose(1, 0, 2)).transpose(1, 0, 2)
    np.testing.assert_array_equal(resize(turned, 30, 40, 3), small)
    locked = rgb.copy()
    locked.flags.writeable = False
    np.testing.assert_array_equal(resize(locked, 30, 40, 3), small)


def test_without_torch_it_says_what_is_missing(rgb: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert resize(rgb, 90, 150, 3) is rgb
    with pytest.raises(ConfigError, match="torch") as caught:
        resize(rgb, 30, 40, 3)
    assert "filmroll[torch]" in caught.value.remedy
