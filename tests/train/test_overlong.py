"""Overlong samples: refused by name, or cut where no image is cut through."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmroll.errors import SampleTooLongError
from filmroll.train.batches.bins import Costs, Limits
from filmroll.train.batches.overlong import fitting
from filmroll.wire.training import SAMPLE_ARRAYS, PlacedImage, check_sample
from tests.train.conftest import FAMILY, sample
from tests.train.drawn import distinct, image, patches, showing, training_samples

LIMITS = st.builds(Limits, tokens=st.integers(1, 300), patches=st.integers(1, 600), packs=st.just(True))


def fitted(samples, limits, *, cut=True):
    return fitting(samples, Costs(FAMILY), limits, cut=cut)


@given(training_samples(most=6), LIMITS)
def test_law_whole(samples, limits):
    """What is left of a sample is its beginning, with whole images, and as much of it as the limits allow."""
    before = {one.name: one for one in samples}
    made = fitted(samples, limits)
    assert len(made.samples) + made.dropped == len(samples)
    for one in made.samples:
        check_sample(one)
        whole = before.pop(one.name)
        for name, _ in SAMPLE_ARRAYS:
            np.testing.assert_array_equal(getattr(one, name), getattr(whole, name)[: one.tokens])
        assert one.images == whole.images[: len(one.images)]
        assert (one.token_ids == 99).sum() == sum(image.length for image in one.images)
        assert one.tokens <= limits.tokens
        assert distinct([one]) <= limits.patches
        assert one.trained[1:].any()
        assert not whole.trained[one.tokens : _most(whole, limits)].any(), "nothing trained was cut without need"
        if whole.tokens <= limits.tokens and distinct([whole]) <= limits.patches:
            assert one is whole
        else:
            assert one.trained[-1], "what stands behind the last trained token is left out"
    assert all(not one.trained[1 : _most(one, limits)].any() for one in before.values())


def _most(one, limits) -> int:
    """The longest beginning that holds to the limits and ends in no placeholder, by trying each."""

    def fits(end):
        inside = [image for image in one.images if image.offset < end]
        seen = {image.descriptor.identity: patches(image.descriptor) for image in inside}
        return sum(seen.values()) <= limits.patches and all(image.end <= end for image in inside)

    return max(end for end in range(min(one.tokens, limits.tokens) + 1) if fits(end))


def test_by_default_it_is_refused_by_name():
    with pytest.raises(SampleTooLongError, match=r"s7 has 11 tokens and 0 vision patches, .* holds 10 and 9"):
        fitted([sample(5), sample(11, name="s7")], Limits(10, 9, packs=True), cut=False)


def test_too_many_patches_are_refused_too():
    with pytest.raises(SampleTooLongError, match="s has 50 tokens and 16 vision patches"):
        fitted([sample(50, [(1, 4)])], Limits(100, 15, packs=True), cut=False)


def test_what_is_cut_and_what_is_dropped_is_counted():
    """The limit is in the image: the one sample trains before it, the other behind it alone."""
    early = sample(60, [(30, 20)], "early")
    late = sample(60, [(30, 20)], "late", trained=(np.arange(60) > 50).astype(np.uint8))
    made = fitted([early, late, sample(9, name="short")], Limits(40, 1000, packs=True))
    assert [(one.name, one.tokens, len(one.images)) for one in made.samples] == [("early", 30, 0), ("short", 9, 0)]
    assert (made.cut, made.dropped) == (1, 1)


def test_an_image_that_is_shown_again_costs_no_more():
    picture = image(1, 56)
    twice = showing(40, PlacedImage(picture, 1), PlacedImage(picture, 10))
    assert fitted([twice], Limits(40, 16, packs=True)).samples == [twice]
