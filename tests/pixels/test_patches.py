"""Patches as plain arithmetic, with no processor to compare to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from filmroll.pixels import patches
from filmroll.pixels.patches import Cut, cut, level_table


@settings(max_examples=50, deadline=None)
@given(*[st.integers(1, 3)] * 5, st.integers(0, 2**32 - 1))
def test_every_value_is_where_the_legend_says(
    bands: int, columns: int, patch: int, merge: int, temporal: int, seed: int
) -> None:
    rgb = np.random.default_rng(seed).integers(0, 256, (bands * merge * patch, columns * merge * patch, 3), np.uint8)
    table = np.random.default_rng(seed).random((3, 256), np.float32)
    out = cut(rgb, table, Cut((patch, patch), merge, temporal))
    assert out.shape == (bands * columns * merge**2, 3, temporal, patch, patch)
    legend = out.reshape(bands, columns, merge, merge, 3, temporal, patch, patch)
    for band, column, down, right, channel, time, y, x in np.ndindex(legend.shape):
        level = rgb[(band * merge + down) * patch + y, (column * merge + right) * patch + x, channel]
        assert legend[band, column, down, right, channel, time, y, x] == table[channel, level]


def test_read_only_and_strided_pictures_are_taken() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    rgb.flags.writeable = False
    table, how = level_table(1 / 255), Cut((2, 2), merge=2)
    turned = rgb.transpose(1, 0, 2)
    np.testing.assert_array_equal(cut(turned, table, how), cut(np.ascontiguousarray(turned), table, how))


@settings(max_examples=20, deadline=None)
@given(*[st.integers(1, 4)] * 4, st.integers(0, 2**32 - 1))
def test_channels_may_come_last(rows: int, columns: int, tall: int, wide: int, seed: int) -> None:
    rgb = np.random.default_rng(seed).integers(0, 256, (rows * tall, columns * wide, 3), np.uint8)
    first, last = cut(rgb, None, Cut((tall, wide))), cut(rgb, None, Cut((tall, wide), channels_last=True))
    assert last.shape == (rows * columns, tall, wide, 3)
    np.testing.assert_array_equal(np.moveaxis(last, -1, 1), first[:, :, 0])


def test_a_picture_may_stay_whole() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    values = cut(rgb, None, Cut())
    assert values.dtype == np.uint8
    np.testing.assert_array_equal(values[0, :, 0], rgb.transpose(2, 0, 1))


def test_the_table_ends_where_it_must() -> None:
    half = (0.5, 0.5, 0.5)
    table = level_table(1 / 255, (half, half))
    assert table.shape == (3, 256)
    assert table.dtype == np.float32
    assert table[:, 0].tolist() == [-1, -1, -1]
    assert table[:, 255].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(level_table(None)[0], np.arange(256))
    np.testing.assert_array_equal(level_table(None, ((1, 2, 3), half))[:, 10], [18, 16, 14])


@settings(max_examples=150, deadline=None)
@given(
    *[st.integers(1, 3)] * 2,
    *[st.integers(1, 35)] * 2,
    *[st.integers(1, 3)] * 2,
    st.booleans(),
    st.sampled_from([np.float32, bfloat16, None]),
)
@example(2, 3, 14, 14, 2, 1, False, None)
@example(2, 3, 16, 16, 2, 2, False, None)
@example(2, 3, 32, 32, 1, 1, False, None)
def test_the_compiled_cut_is_numpys(
    bands: int, columns: int, tall: int, wide: int, merge: int, temporal: int, last: bool, dtype: type | None
) -> None:
    assert patches.compiled is not None, "this machine has a compiler, so the loops should have been built"
    draw = np.random.default_rng(bands * columns)
    rgb = draw.integers(0, 256, (bands * merge * tall, columns * merge * wide, 3), np.uint8)
    assert_cut_as_numpy_does(rgb, Cut((tall, wide), merge, 1 if last else temporal, channels_last=last), dtype)


@pytest.mark.parametrize("dtype", [np.float32, bfloat16, None])
@pytest.mark.parametrize(
    "how",
    [Cut((16, 16), 7, 2), Cut((14, 14), 2, 2), Cut((16, 16), channels_last=True), Cut(), Cut((112, 784))],
    ids=["16", "14", "last", "whole", "bands"],
)
def test_so_is_that_of_large_pictures(how: Cut, dtype: type | None) -> None:
    """Larger than what goes through the caches, and patches larger than what is made at a time."""
    rgb = np.random.default_rng(0).integers(0, 256, (784, 784, 3), np.uint8)
    assert_cut_as_numpy_does(rgb, how, dtype)


def assert_cut_as_numpy_does(rgb: np.ndarray, how: Cut, dtype: type | None) -> None:
    table = None if dtype is None else np.random.default_rng(0).normal(0, 100, (3, 256)).astype(dtype)
    ours = cut(rgb, table, how)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(patches, "compiled", None)
        np.testing.assert_array_equal(ours.view(np.uint8), cut(rgb, table, how).view(np.uint8))
