"""Placeholder tokens are where the descriptors say, as many as they say, and nowhere else."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmroll.errors import PlacementError
from filmroll.families.base import Placeholders
from filmroll.families.qwen_vl import QwenVL, QwenVLSettings
from filmroll.image import ImageRef
from filmroll.materialize import check_placements
from filmroll.wire.descriptor import ImageDescriptor

PAD = 9
FAMILY = QwenVL(QwenVLSettings(), placeholders=Placeholders(image=PAD, unsampled=(PAD,), texts=()))
ANY_IMAGE = ImageRef(uri="x.png", sha256="0" * 64, media_type="image/png", width=56, height=56, nbytes=1)


def of(tokens: int) -> ImageDescriptor:
    return msgspec.structs.replace(FAMILY.describe(ANY_IMAGE), tokens=tokens)


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_images_in_their_places(kind: Any) -> None:
    check_placements(kind([1, 9, 9, 2, 9, 9, 9]), [1, 4], [of(2), of(3)], FAMILY)
    check_placements(kind([9, 9, 9]), [0, 2], [of(2), of(1)], FAMILY)
    check_placements(kind([1, 2]), [], [], FAMILY)
    check_placements(kind([]), [], [], FAMILY)


@pytest.mark.parametrize(
    ("tokens", "offsets", "lengths", "index", "said"),
    [
        ([1, 9, 2], [], [], None, "token 1 is an image placeholder that belongs to no image"),
        ([9, 1, 9, 9], [2], [2], None, "token 0 .* belongs to no image"),
        ([1, 9, 9, 9], [1], [2], None, "token 3 .* belongs to no image"),
        ([9, 1, 9, 1, 9], [0, 4], [1, 1], None, "token 2 .* belongs to no image"),
        ([1, 9, 9, 2], [1], [3], 0, "tokens 1 to 4 of 4"),
        ([1, 9, 9], [1], [3], 0, "tokens 1 to 4 of 3"),
        ([1, 9, 9], [2**40], [1], None, "belongs to no image"),
        ([1, 2], [2**40], [1], 0, "not the placeholder of this image"),
        ([9, 1], [0, 1], [1, 1], 1, "tokens 1 to 2"),
        ([9, 9, 9], [0, 1], [2, 2], 1, "begins at token 1, before the end"),
        ([9, 2, 9], [2, 0], [1, 1], None, "belongs to no image"),
        ([9, 9], [-1], [2], 0, "begins at token -1"),
        ([9], [0], [], None, "0 images have 1 placements"),
    ],
)
def test_anything_else_is_refused(
    tokens: list[int], offsets: list[int], lengths: list[int], index: int | None, said: str
) -> None:
    with pytest.raises(PlacementError, match=said) as caught:
        check_placements(tokens, offsets, [of(length) for length in lengths], FAMILY)
    assert caught.value.index == index


@given(
    st.lists(st.integers(8, 10), max_size=12), st.lists(st.tuples(st.integers(-1, 12), st.integers(1, 4)), max_size=3)
)
def test_law_whole(tokens: list[int], spans: list[tuple[int, int]]) -> None:
    """Accepted exactly when the spans, in order and without overlap, are the set of all placeholder positions."""
    claimed = [position for offset, length in spans for position in range(offset, offset + length)]
    sound = claimed == [position for position, token in enumerate(tokens) if token == PAD]
    descriptors = [of(length) for _, length in spans]
    try:
        check_placements(tokens, [offset for offset, _ in spans], descriptors, FAMILY)
    except PlacementError:
        assert not sound
    else:
        assert sound
