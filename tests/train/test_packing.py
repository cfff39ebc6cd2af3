"""Packing: within the budget, everything once, nothing cut."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmroll.errors import SampleTooLongError
from filmroll.train.packing import pack_samples
from tests.train.conftest import sample


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 400))
def test_every_sample_is_packed_once_and_whole(lengths, budget):
    made = [sample(length, name=f"{number}") for number, length in enumerate(lengths)]
    batches = pack_samples(made, max_tokens=budget)
    packed = [one for batch in batches for one in batch.samples]
    assert Counter(id(one) for one in packed) == Counter(id(one) for one in made)
    for batch in batches:
        assert len(batch.samples) * max(one.tokens for one in batch.samples) <= budget


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_bins_are_never_twice_what_is_needed(lengths):
    batches = pack_samples([sample(length) for length in lengths], max_tokens=100)
    assert len(batches) <= 2 * -(-sum(lengths) // 100) + 1


def test_a_sample_beyond_the_budget_is_refused_by_name():
    with pytest.raises(SampleTooLongError, match="s7 has 11 tokens, a micro-batch holds 10"):
        pack_samples([sample(5), sample(11, name="s7")], max_tokens=10)
