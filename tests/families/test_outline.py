"""A picture's arrays follow from its layout, but for the levels: a reader without the picture knows the rest."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from filmroll.errors import LayoutError
from filmroll.families import Family, load_family
from filmroll.families.base import Layout
from filmroll.image import ImageRef
from tests.families.cases import EVERY_CASE

SIDES = (1, 17, 32, 63, 90, 200)


@pytest.fixture(scope="module", params=EVERY_CASE, ids=lambda case: case.name)
def family(request, tmp_path_factory) -> Family:
    folder = tmp_path_factory.mktemp("model")
    request.param.build(folder)
    return load_family(folder)


def layouts(family: Family) -> Iterator[tuple[tuple[int, int], Layout]]:
    """Of every size that the family takes."""
    for size in ((width, height) for width in SIDES for height in SIDES):
        try:
            yield size, family.layout(*size)
        except LayoutError:
            continue


def test_the_outline_is_the_picture_without_its_levels(family: Family) -> None:
    seen = 0
    for (width, height), layout in layouts(family):
        made = family.pixels([np.full((height, width, 3), 7, np.uint8)], "uint8")
        outline = family.outline(layout)
        assert list(outline) == list(made)
        for name, array in made.items():
            assert (outline[name].dtype, outline[name].shape) == (array.dtype, array.shape), (name, width, height)
            if array.dtype == np.uint8:
                assert not outline[name].any()
            else:
                np.testing.assert_array_equal(outline[name], array)
        seen += 1
    assert seen >= 25


def test_levels_are_as_many_bytes_as_is_said(family: Family) -> None:
    """By this number readers bound what they hold."""
    for (width, height), layout in layouts(family):
        image = ImageRef(
            uri="file:///nowhere", sha256="0" * 64, media_type="image/png", width=width, height=height, nbytes=1
        )
        levels = [array for array in family.outline(layout).values() if array.dtype == np.uint8]
        assert sum(array.nbytes for array in levels) == family.level_bytes(image)
