"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from filmroll.view import words


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1234, "1.23 kB"), (52_800_000, "52.8 MB"), (999_600, "1.00 MB")],
)
def test_size(value: float, text: str) -> None:
    assert words.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04, "0.0 s"), (12.2, "12 s"), (59.6, "1 min 00 s"), (3_840, "1 h 04 min"), (90_000, "1 d 1 h")],
)
def test_duration(value: float, text: str) -> None:
    assert words.duration(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.0, "0.00"), (0.0002, "0.0002"), (0.125, "0.12"), (1.0, "1.00")])
def test_share(value: float, text: str) -> None:
    assert words.share(value) == text


def test_what_is_not_known_is_a_dash() -> None:
    for words_of in (words.count, words.decimal, words.size, words.times, words.duration, words.share):
        assert words_of(math.nan) == words.NOTHING
