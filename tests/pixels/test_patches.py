"""Patches as plain arithmetic, with no processor to compare to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from filmroll.pixels.patches import level_table, patchify, resize


@settings(max_examples=50, deadline=None)
@given(*[st.integers(1, 3)] * 5, st.integers(0, 2**32 - 1))
def test_every_value_is_where_the_legend_says(
    bands: int, columns: int, patch: int, merge: int, temporal: int, seed: int
) -> None:
    rgb = np.random.default_rng(seed).integers(0, 256, (bands * merge * patch, columns * merge * patch, 3), np.uint8)
    table = np.random.default_rng(seed).random((3, 256), np.float32)
    out = np.full((bands * columns * merge**2, 3 * temporal * patch**2), np.nan, np.float32)
    patchify(rgb, table, out, patch=patch, merge=merge, temporal=temporal)
    legend = out.reshape(bands, columns, merge, merge, 3, temporal, patch, patch)
    for band, column, down, right, channel, time, y, x in np.ndindex(legend.shape):
        level = rgb[(band * merge + down) * patch + y, (column * merge + right) * patch + x, channel]
        assert legend[band, column, down, right, channel, time, y, x] == table[channel, level]


def test_a_picture_that_has_the_size_is_not_copied() -> None:
    rgb = np.zeros((4, 6, 3), np.uint8)
    assert resize(rgb, 4, 6, 3) is rgb


@pytest.mark.parametrize("resample", range(6))
def test_resizing_is_pillows(resample: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (31, 47, 3), np.uint8)
    expected = np.asarray(Image.fromarray(rgb).resize((20, 50), resample))
    np.testing.assert_array_equal(resize(rgb, 50, 20, resample), expected)


def test_read_only_and_strided_pictures_are_taken() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    rgb.flags.writeable = False
    table, out, turned = level_table(1 / 255), np.empty((16, 12), np.float32), np.empty((16, 12), np.float32)
    patchify(rgb.transpose(1, 0, 2), table, out, patch=2, merge=2, temporal=1)
    patchify(np.ascontiguousarray(rgb.transpose(1, 0, 2)), table, turned, patch=2, merge=2, temporal=1)
    np.testing.assert_array_equal(out, turned)


def test_the_table_ends_where_it_must() -> None:
    half = (0.5, 0.5, 0.5)
    table = level_table(1 / 255, (half, half))
    assert table.shape == (3, 256)
    assert table.dtype == np.float32
    assert table[:, 0].tolist() == [-1, -1, -1]
    assert table[:, 255].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(level_table(None)[0], np.arange(256))
    np.testing.assert_array_equal(level_table(None, ((1, 2, 3), half))[:, 10], [18, 16, 14])
