"""Packing: everything once and whole, within both limits, in no more micro-batches than the simplest way."""

import random
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmroll.train.batches.bins import Costs, Limits
from filmroll.train.batches.packing import pack
from filmroll.wire.training import PlacedImage
from tests.train.conftest import FAMILY, sample
from tests.train.drawn import distinct, image, showing, training_samples

ROOMY = st.builds(Limits, tokens=st.integers(360, 2000), patches=st.integers(768, 1100), packs=st.booleans())
"""Every sample that is drawn fits by itself."""


def packed(samples, limits):
    return pack(samples, Costs(FAMILY), limits)


def next_fit(samples, limits):
    """The naive way: a row for each sample, and a new micro-batch as soon as the next does not fit."""
    batches = []
    for one in samples:
        open_one = [*batches[-1], one] if batches else []
        area = len(open_one) * max((each.tokens for each in open_one), default=0)
        if open_one and area <= limits.tokens and distinct(open_one) <= limits.patches:
            batches[-1] = open_one
        else:
            batches.append([one])
    return batches


@given(training_samples(), ROOMY)
def test_law_whole(samples, limits):
    """Every sample is packed once, as it is, with its images where they were."""
    found = [one for batch in packed(samples, limits) for row in batch.rows for one in row]
    assert Counter(map(id, found)) == Counter(map(id, samples))


@given(training_samples(), ROOMY)
def test_both_limits_are_kept(samples, limits):
    for batch in packed(samples, limits):
        longest = max(sum(one.tokens for one in row) for row in batch.rows)
        assert batch.area == longest * len(batch.rows) <= limits.tokens
        assert Costs(FAMILY).encoded(batch) == distinct(batch.samples) <= limits.patches
        assert longest == max(one.tokens for one in batch.samples), "no row is longer than attention needs"
        assert limits.packs or all(len(row) == 1 for row in batch.rows)


@given(training_samples(), ROOMY)
def test_never_more_micro_batches_than_next_fit(samples, limits):
    assert len(packed(samples, limits)) <= len(next_fit(samples, limits))


def test_an_order_that_first_fit_decreasing_spoils_is_kept():
    """Longest first, 9 and 8 leave no room and the rest takes two; as they come, 7 and 8, then 9 above 4 and 5."""
    samples = [sample(length, name=str(length)) for length in (7, 8, 9, 4, 5)]
    assert names(packed(samples, Limits(20, 1, packs=True))) == [[["7"], ["8"]], [["9"], ["4", "5"]]]


def test_the_patches_of_many_images_fill_a_micro_batch():
    samples = [showing(70, PlacedImage(image(number, 224), 1)) for number in range(4)]
    assert [len(batch.samples) for batch in packed(samples, Limits(9999, 512, packs=True))] == [2, 2]


def test_a_sample_goes_where_its_images_are_though_another_micro_batch_has_room_too():
    ours, others = (PlacedImage(image(number, 56), 1) for number in range(2))
    lengths = {10: ours, 100: others, 90: others, 80: ours, 70: ours}
    samples = [showing(length, picture) for length, picture in lengths.items()]
    found = packed(samples, Limits(200, 999, packs=True))
    assert [[[one.tokens for one in row] for row in batch.rows] for batch in found] == [[[100], [90]], [[80], [70, 10]]]


@given(training_samples(), ROOMY)
def test_the_same_samples_give_the_same_micro_batches(samples, limits):
    copies = [msgspec.structs.replace(one) for one in samples]
    assert names(packed(copies, limits)) == names(packed(samples, limits))


def names(batches):
    return [[[one.name for one in row] for row in batch.rows] for batch in batches]


def test_shorter_samples_fill_the_room_behind_others():
    samples = [sample(length, name=str(length)) for length in (100, 60, 50, 40, 30, 20)]
    (batch,) = packed(samples, Limits(300, 1, packs=True))
    assert [[one.tokens for one in row] for row in batch.rows] == [[100], [60, 40], [50, 30, 20]]


@pytest.mark.parametrize("seed", range(3))
def test_rollouts_of_a_group_meet_their_images_again(seed):
    """Eight groups of eight whose completions differ: at most one group is divided at each micro-batch's edge."""
    lengths = random.Random(seed)
    pictures = [PlacedImage(image(group, 112), 1) for group in range(8)]
    samples = [showing(lengths.randint(100, 120), picture) for _ in range(8) for picture in pictures]
    batches = packed(samples, Limits(2400, 10**6, packs=True))
    encoded = sum(distinct(batch.samples) for batch in batches)
    assert len(batches) <= 4
    assert encoded <= (8 + len(batches) - 1) * 64
