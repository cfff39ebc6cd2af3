"""A step for several ranks: as many micro-batches for each, images in the same ones, nothing lost or trained twice."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmroll.errors import SampleTooLongError
from filmroll.train.batches.bins import Costs
from filmroll.train.batches.plan import deal, plan
from filmroll.train.step import TrainerConfig
from filmroll.wire.training import PlacedImage, check_sample
from tests.train.conftest import FAMILY, sample
from tests.train.drawn import distinct, image, showing, training_samples

ROOMY = TrainerConfig(max_tokens=600, max_patches=1000)


def dealt(samples, ranks):
    """The micro-batches of each rank."""
    return deal(plan(samples, FAMILY, ROOMY).micro_batches, Costs(FAMILY), ranks)


def is_dummy(one):
    return one.name.startswith("dummy of ")


@given(training_samples(), st.integers(1, 9))
def test_law_ranks_run_side_by_side(samples, ranks):
    made = dealt(samples, ranks)
    assert len(made) == ranks
    assert len({len(rank) for rank in made}) == 1
    for together in zip(*made, strict=True):
        assert len({any(one.images for one in batch.samples) for batch in together}) == 1
        for batch in together:
            assert batch.area <= ROOMY.max_tokens
            assert distinct(batch.samples) <= ROOMY.max_patches


@given(training_samples(), st.integers(1, 9))
def test_law_whole(samples, ranks):
    """Over all ranks every sample that can be trained is there once; what else is there can train nothing."""
    found = [one for rank in dealt(samples, ranks) for batch in rank for one in batch.samples]
    real = [one for one in found if not is_dummy(one)]
    assert Counter(map(id, real)) == Counter(id(one) for one in samples if one.trained[1:].any())
    assert len(real) + plan(samples, FAMILY, ROOMY).dropped == len(samples)
    for one in filter(is_dummy, found):
        check_sample(one)
        assert not one.trained.any()
        assert set(msgspec.structs.asdict(one.weights).values()) == {0.0}, "every loss stream, also one yet to come"
        assert one.advantage == 0.0


@given(training_samples(), st.integers(2, 9))
def test_a_rank_gets_a_dummy_only_where_no_sample_is_left_for_it(samples, ranks):
    for together in zip(*dealt(samples, ranks), strict=True):
        if any(is_dummy(one) for batch in together for one in batch.samples):
            # What stands beside a dummy cannot be divided: one sample, or one of two that has the images.
            for batch in together:
                seeing = [one for one in batch.samples if one.images]
                assert len(batch.samples) == 1 or len(seeing) < len(batch.samples)


def test_alone_there_are_no_dummies_and_nothing_is_divided():
    made = dealt([sample(100, name=str(number)) for number in range(5)], 1)
    assert [[len(batch.samples) for batch in rank] for rank in made] == [[5]]


def test_what_takes_longest_is_done_at_the_same_time():
    """Fewer tokens, but more vision patches."""
    sides = {590: 56, 580: 224, 570: 56, 560: 224}
    samples = [showing(length, PlacedImage(image(side, side), 1)) for length, side in sides.items()]
    together = [[batch.area for batch in side_by_side] for side_by_side in zip(*dealt(samples, 2), strict=True)]
    assert together == [[580, 560], [590, 570]]


def test_overlong_samples_follow_the_configuration():
    long = sample(700, [(590, 20)], name="long")
    with pytest.raises(SampleTooLongError, match="long has 700 tokens"):
        plan([long], FAMILY, ROOMY)
    made = plan([long], FAMILY, ROOMY.model_copy(update={"overlong": "cut"}))
    assert [one.tokens for batch in made.micro_batches for one in batch.samples] == [590]
    assert (made.cut, made.dropped) == (1, 0)


def test_no_samples_are_no_work():
    assert dealt([], 2) == [[], []]
