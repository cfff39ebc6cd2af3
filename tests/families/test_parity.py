"""What holds for every family: its layout and its pixels are those of the model's own image processor.

A new family adds a Case to CASES.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from PIL import Image
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as qwen2_vl

from filmroll.errors import ImageFormatError, LayoutError
from filmroll.families.base import Family, Placeholders
from filmroll.families.qwen_vl import QwenVL, QwenVLSettings
from filmroll.pixels.decode import decode
from filmroll.store.ingest import canonical

ORIENTATION = 0x0112
TOLERANCE = 1e-6
"""The law's; the arithmetic below is in fact equal to the last bit."""


@dataclass(frozen=True)
class Case:
    """One family under one configuration, and the processor of transformers it must equal."""

    name: str
    family: Family
    processor: Any
    unit: int
    """Sides are rounded to multiples of this."""
    bounds: tuple[int, int]
    """The least and the greatest area in pixels."""
    target: Callable[[int, int], tuple[int, int]]
    """The processor's own arithmetic: (height, width) -> (height, width), ValueError where it refuses."""


def qwen(name: str, patch: int, low: int, high: int, *, merge: int = 2, temporal: int = 2) -> Case:
    numbers = QwenVLSettings(
        patch_size=patch, merge_size=merge, temporal_patch_size=temporal, min_pixels=low, max_pixels=high
    )
    processor = qwen2_vl.Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=merge,
        temporal_patch_size=temporal,
        size={"shortest_edge": low, "longest_edge": high},
    )

    def target(height: int, width: int) -> tuple[int, int]:
        return qwen2_vl.smart_resize(height, width, patch * merge, low, high)

    placeholders = Placeholders(image=1, unsampled=(1,), texts=())
    return Case(name, QwenVL(numbers, placeholders=placeholders), processor, patch * merge, (low, high), target)


CASES = [
    qwen("qwen2_vl-default", 14, 56 * 56, 28 * 28 * 1280),
    qwen("qwen2_vl-released", 14, 3136, 12845056),
    qwen("qwen3_vl", 16, 65536, 16777216),
    qwen("tiny", 16, 32 * 32, 1024 * 1024),
    qwen("one-area", 14, 50176, 50176),
    qwen("bounds-beside-multiples", 16, 4 * 32 * 32 + 1, 16 * 32 * 32 - 1),
    qwen("no-least-area", 16, 1, 4 * 32 * 32),
    qwen("large-merge", 8, 3000, 90000, merge=4, temporal=1),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@st.composite
def sizes(draw: st.DrawFn, case: Case) -> tuple[int, int]:
    """(height, width): ordinary ones, and those where rounding, the bounds or the ratio turn over."""
    any_side = st.integers(1, 6000)
    near_multiple = st.builds(
        lambda count, off: max(1, count * case.unit // 2 + off), st.integers(1, 200), st.integers(-1, 1)
    )
    height = draw(st.one_of(any_side, near_multiple, st.integers(1, 40)))
    near_bound = st.builds(
        lambda area, off: max(1, math.isqrt(area) ** 2 // height + off),
        st.sampled_from(case.bounds),
        st.integers(-3, 3),
    )
    near_ratio = st.integers(-1, 1).map(lambda off: height * 200 + off)
    width = draw(st.one_of(any_side, near_multiple, near_bound, near_ratio))
    return (height, width) if draw(st.booleans()) else (width, height)


@every_case
def test_law_layout_equals_processor(case: Case) -> None:
    @settings(max_examples=400, deadline=None)
    @given(sizes(case))
    @example((1, 1))
    @example((1, 200))
    @example((1, 201))
    @example((200, 1))
    @example((case.unit, case.unit))
    @example((case.unit + 1, case.unit - 1))
    @example((3 * case.unit // 2, 5 * case.unit // 2))
    @example((10000, 10000))
    def law(size: tuple[int, int]) -> None:
        height, width = size
        try:
            tall, wide = case.target(height, width)
        except ValueError:
            with pytest.raises(LayoutError):
                case.family.layout(width, height)
            return
        layout = case.family.layout(width, height)
        patch, merge = case.processor.patch_size, case.processor.merge_size
        assert layout.grid == (1, tall // patch, wide // patch)
        patches = case.processor.get_number_of_image_patches(height, width)
        assert case.family.cost(layout) == patches
        assert layout.tokens * merge**2 == patches
        assert layout.payload == {"image_grid_thw": [list(layout.grid)]}

    law()


@every_case
def test_law_pixels_equals_processor(case: Case) -> None:
    @settings(max_examples=12, deadline=None)
    @given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32 - 1))
    @example(1, 1, 0)
    @example(1, 200, 0)
    @example(case.unit * 7, case.unit * 8, 0)
    def law(height: int, width: int, seed: int) -> None:
        if max(height, width) > 200 * min(height, width):
            return
        rgb = picture(height, width, seed)
        expected = case.processor([Image.fromarray(rgb)], return_tensors="np")
        assert_equal(case.family.pixels([rgb]), expected)
        grid = case.family.layout(width, height).grid
        assert expected["image_grid_thw"].tolist() == [list(grid)]

    law()


@every_case
@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "CMYK", "I;16", "YCbCr"])
def test_law_pixels_equals_processor_for_every_mode(case: Case, mode: str) -> None:
    assert_equal_when_stored(case, of_mode(mode))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_law_pixels_equals_processor_for_every_orientation(orientation: int, form: str) -> None:
    image = of_mode("RGB")
    image.getexif()[ORIENTATION] = orientation
    file = io.BytesIO()
    image.save(file, form, exif=image.getexif())
    height, width = assert_equal_when_stored(CASES[3], file.getvalue())
    assert (height, width) == ((40, 70) if orientation < 5 else (70, 40))


@every_case
def test_pixels_of_several_images_are_those_of_each_in_order(case: Case) -> None:
    pictures = [picture(height, width, height) for height, width in [(40, 70), (case.unit, case.unit), (130, 30)]]
    together = case.family.pixels(pictures)
    apart = [case.family.pixels([rgb]) for rgb in pictures]
    for name, array in together.items():
        np.testing.assert_array_equal(array, np.concatenate([one[name] for one in apart]))
    assert_equal(together, case.processor([Image.fromarray(rgb) for rgb in pictures], return_tensors="np"))


@every_case
def test_bfloat16_is_float32_rounded(case: Case) -> None:
    pictures = [picture(40, 70, 1), picture(130, 30, 2)]
    exact, rounded = case.family.pixels(pictures), case.family.pixels(pictures, "bfloat16")
    assert rounded["pixel_values"].dtype == bfloat16
    np.testing.assert_array_equal(rounded["pixel_values"], exact["pixel_values"].astype(bfloat16))
    np.testing.assert_array_equal(rounded["image_grid_thw"], exact["image_grid_thw"])


@every_case
def test_no_images_are_no_arrays(case: Case) -> None:
    assert case.family.pixels([]) == {}


@every_case
@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_a_side_below_one_has_no_layout(case: Case, size: tuple[int, int]) -> None:
    with pytest.raises(LayoutError, match="at least 1"):
        case.family.layout(*size)


def test_the_class_defaults_are_those_of_transformers() -> None:
    theirs, ours = qwen2_vl.Qwen2VLImageProcessorPil(), QwenVLSettings()
    for name in ("patch_size", "merge_size", "temporal_patch_size", "do_rescale", "rescale_factor", "do_normalize"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert (ours.min_pixels, ours.max_pixels) == (theirs.size["shortest_edge"], theirs.size["longest_edge"])
    assert (ours.image_mean, ours.image_std) == (tuple(theirs.image_mean), tuple(theirs.image_std))
    assert ours.resample == int(theirs.resample)


@pytest.mark.parametrize(
    "change",
    [
        {"resample": 2},
        {"image_mean": (0.5, 0.5, 0.5)},
        {"image_std": (0.5, 0.5, 0.5)},
        {"rescale_factor": 1 / 127.5},
        {"do_rescale": False},
        {"do_normalize": False},
        {"patch_size": 16},
        {"max_pixels": 10**6},
    ],
)
def test_the_recipe_names_everything_that_pixels_depend_on(change: dict[str, Any]) -> None:
    placeholders = Placeholders(image=1, unsampled=(1,), texts=())
    plain = QwenVL(QwenVLSettings(), placeholders=placeholders)
    changed = QwenVL(replace(QwenVLSettings(), **change), placeholders=placeholders)
    assert plain.recipe != changed.recipe
    assert len(plain.recipe) == len(plain.fingerprint) == 32
    layout_only = {"patch_size", "max_pixels"}
    assert (plain.fingerprint != changed.fingerprint) == bool(layout_only & set(change))


def assert_equal_when_stored(case: Case, source: Any) -> tuple[int, ...]:
    """What our reader decodes from the stored bytes, against the processor on those bytes opened by Pillow."""
    stored = canonical(source)
    rgb = decode(stored.data, max_pixels=10**6)
    assert rgb.shape[:2] == (stored.height, stored.width)
    expected = case.processor([Image.open(io.BytesIO(stored.data))], return_tensors="np")
    assert_equal(case.family.pixels([rgb]), expected)
    return rgb.shape[:2]


def of_mode(mode: str) -> Image.Image:
    """A picture of 70x40 pixels whose every band is noise."""
    if mode == "I;16":
        return Image.fromarray(np.random.default_rng(1).integers(0, 2**16, (40, 70), np.uint16))
    if mode in ("1", "P"):
        return Image.fromarray(picture(40, 70, 1)).convert(mode)
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(1).integers(0, 256, (40, 70, bands), np.uint8)
    return Image.frombytes(mode, (70, 40), noise.tobytes())


def picture(height: int, width: int, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def assert_equal(ours: dict[str, Any], theirs: Any) -> None:
    assert set(ours) == set(theirs.keys())
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        np.testing.assert_allclose(array, theirs[name], rtol=0, atol=TOLERANCE)


def test_a_pil_image_is_a_picture_too() -> None:
    family = CASES[0].family
    rgb = picture(40, 70, 1)
    for name, array in family.pixels([Image.fromarray(rgb)]).items():
        np.testing.assert_array_equal(array, family.pixels([rgb])[name])


@pytest.mark.parametrize("image", [b"png", "a.png", np.zeros((4, 4)), np.zeros((3, 4, 4), np.uint8), None])
def test_anything_else_is_refused_by_its_number(image: Any) -> None:
    with pytest.raises(ImageFormatError) as refusal:
        CASES[0].family.pixels([picture(40, 70, 1), image])
    assert refusal.value.index == 1


def test_a_pil_image_is_read_as_the_store_reads_it() -> None:
    family = CASES[0].family
    clear = Image.new("RGBA", (70, 40), (9, 9, 9, 0))
    white = np.full((40, 70, 3), 255, np.uint8)
    np.testing.assert_array_equal(family.pixels([clear])["pixel_values"], family.pixels([white])["pixel_values"])
