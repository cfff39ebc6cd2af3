"""Resizing is Pillow's, to the last bit, with and without the compiled loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from filmroll.pixels import resize as module
from filmroll.pixels.resize import resize

sides = st.integers(1, 120)


def test_a_picture_that_has_the_size_is_not_copied() -> None:
    rgb = np.zeros((4, 6, 3), np.uint8)
    assert resize(rgb, 4, 6, 3) is rgb


@pytest.mark.parametrize("resample", range(6))
@pytest.mark.parametrize("compiled", [True, False])
def test_resizing_is_pillows(resample: int, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.compiled is not None, "this machine has a compiler, so the loops should have been built"
    if not compiled:
        monkeypatch.setattr(module, "compiled", None)

    @settings(max_examples=150, deadline=None)
    @given(sides, sides, sides, sides, st.integers(0, 2**32 - 1))
    @example(1, 1, 90, 90, 0)
    @example(90, 90, 1, 1, 0)
    # Rows lost: as many as, twice as many as, and one more than twice as many as columns.
    @example(60, 60, 40, 40, 0)
    @example(60, 60, 20, 40, 0)
    @example(60, 60, 19, 40, 0)
    @example(60, 60, 59, 90, 0)
    @example(60, 60, 90, 20, 0)
    # One level of one channel shows whether a filter's constants are Pillow's, which are single.
    @example(110, 103, 78, 54, 4)
    @example(75, 120, 81, 81, 13)
    def law(height: int, width: int, new_height: int, new_width: int, seed: int) -> None:
        rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        expected = np.asarray(Image.fromarray(rgb).resize((new_width, new_height), resample))
        np.testing.assert_array_equal(resize(rgb, new_height, new_width, resample), expected)

    law()


@pytest.mark.parametrize("resample", [1, 2, 3])
def test_a_large_picture_is_resized_as_pillow_does(resample: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (1031, 773, 3), np.uint8)
    for height, width in [(768, 768), (28, 1500), (1500, 28), (515, 386)]:
        expected = np.asarray(Image.fromarray(rgb).resize((width, height), resample))
        np.testing.assert_array_equal(resize(rgb, height, width, resample), expected)


def test_read_only_and_strided_pictures_are_taken() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (16, 9, 3), np.uint8)
    rgb.flags.writeable = False
    turned = rgb.transpose(1, 0, 2)
    np.testing.assert_array_equal(resize(turned, 5, 7, 3), resize(np.ascontiguousarray(turned), 5, 7, 3))
