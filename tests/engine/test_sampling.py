"""Sampling: the distribution, the filters, the seeds, and the logprobs that a trainer computes again."""

from __future__ import annotations

import pytest
import torch

from filmroll.engine.embedded.sampling import Choosers, own_bias, own_generator, sample
from filmroll.materialize.feed import SUPPRESSED
from filmroll.wire.generate import SamplingParams

CPU = torch.device("cpu")
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, SUPPRESSED, -2.0, 0.5])
NEVER = 5
"""The token that is suppressed."""


def draw(params: list[SamplingParams], logits: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generators, biases = [own_generator(one) for one in params], [own_bias(one, {NEVER}) for one in params]
    return sample(logits, Choosers.of(params, generators, biases, CPU), torch.Generator().manual_seed(seed))


def many(params: SamplingParams, count: int = 20_000) -> torch.Tensor:
    return draw([params] * count, LOGITS.expand(count, -1))[0]


def chi_square(tokens: torch.Tensor, expected: torch.Tensor) -> float:
    """Of the drawn tokens against probabilities; tokens without probability must not occur."""
    seen = torch.bincount(tokens, minlength=len(expected)).double()
    assert seen[expected == 0].sum() == 0
    likely = expected > 0
    wanted = expected[likely].double() * len(tokens)
    return float(((seen[likely] - wanted) ** 2 / wanted).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_follow_the_distribution(temperature: float) -> None:
    expected = torch.softmax(LOGITS / temperature, dim=-1)
    # The 0.999 quantile of chi-square with 6 degrees of freedom is 22.5.
    assert chi_square(many(SamplingParams(temperature=temperature)), expected) < 22.5


def test_first_draws_of_neighbouring_seeds_follow_the_distribution() -> None:
    params = [SamplingParams(seed=seed) for seed in range(5000)]
    tokens, _ = draw(params, LOGITS.expand(len(params), -1))
    assert chi_square(tokens, torch.softmax(LOGITS, dim=-1)) < 22.5


def test_top_k_keeps_the_k_likeliest_and_their_proportions() -> None:
    expected = torch.softmax(LOGITS, dim=-1) * torch.tensor([1, 1, 1, 0, 0, 0, 0, 0])
    assert chi_square(many(SamplingParams(top_k=3)), expected / expected.sum()) < 13.8


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    masses = torch.softmax(LOGITS, dim=-1)
    at_the_edge = float(masses[0] + masses[1] / 2)
    assert set(many(SamplingParams(top_p=at_the_edge)).tolist()) == {0, 1}
    assert set(many(SamplingParams(top_p=float(masses[0]) / 2)).tolist()) == {0}


def test_top_k_of_one_is_greedy_also_with_ties() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0]]).expand(100, -1)
    greedy, _ = draw([SamplingParams(temperature=0)] * 100, logits)
    first, _ = draw([SamplingParams(top_k=1)] * 100, logits)
    assert greedy.tolist() == first.tolist() == [1] * 100


@pytest.mark.parametrize("top_k", [-1, 0, 10**12])
def test_filters_that_filter_nothing(top_k: int) -> None:
    params = [SamplingParams(seed=seed, top_k=top_k) for seed in range(50)]
    plain = [SamplingParams(seed=seed) for seed in range(50)]
    assert draw(params, LOGITS.expand(50, -1))[0].tolist() == draw(plain, LOGITS.expand(50, -1))[0].tolist()


def test_logprobs_are_those_before_the_filters() -> None:
    params = [
        SamplingParams(temperature=0),
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.3, top_k=2),
        SamplingParams(temperature=2, top_p=0.3, seed=4),
    ]
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    tokens, logprobs = draw(params, logits)
    for row, one in enumerate(params):
        expected = torch.log_softmax(logits[row] / (one.temperature or 1), dim=-1)[tokens[row]]
        assert logprobs[row] == expected


def test_a_seeded_row_is_the_same_in_any_company() -> None:
    seeded = SamplingParams(seed=7, temperature=1.5)
    alone = draw([seeded], LOGITS[None])[0].tolist()
    others = [SamplingParams(), SamplingParams(temperature=0), SamplingParams(top_k=2), SamplingParams(seed=8)]
    for place in range(len(others) + 1):
        company = [*others[:place], seeded, *others[place:]]
        assert draw(company, LOGITS.expand(5, -1), seed=place)[0][place].tolist() == alone[0]


def test_tokens_without_mass_are_never_drawn_at_the_edges() -> None:
    logits = torch.full((2000, 6), SUPPRESSED)
    logits[:, 2] = 0.0
    logits[:, 4] = -18.0
    tokens, _ = draw([SamplingParams(temperature=100)] * 2000, logits)
    assert set(tokens.tolist()) <= {2, 4}


def test_a_bias_is_added_before_the_temperature() -> None:
    params = SamplingParams(temperature=2.0, logit_bias={0: -3.0, 4: 2.5})
    biased = (LOGITS + torch.tensor([-3.0, 0, 0, 0, 2.5, 0, 0, 0])) / 2
    assert chi_square(many(params), biased.softmax(-1)) < 25
    tokens, logprobs = draw([params] * 64, LOGITS.expand(64, -1))
    torch.testing.assert_close(logprobs, biased.log_softmax(-1)[tokens])


def test_a_bias_decides_for_its_own_row_alone() -> None:
    biased = SamplingParams(temperature=0, logit_bias={6: 10.0})
    tokens, logprobs = draw([SamplingParams(temperature=0), biased], LOGITS.expand(2, -1))
    assert tokens.tolist() == [0, 6]
    assert logprobs[1] > -0.1


@pytest.mark.parametrize("bias", [1e9, 1e30, 1e308])
@pytest.mark.parametrize("temperature", [0.0, 0.001, 1.0])
def test_no_bias_brings_a_suppressed_token_back(bias: float, temperature: float) -> None:
    """Neither its own nor that of all others."""
    for others in ({}, {token: -bias for token in range(8) if token != NEVER}, {0: bias, 1: bias}):
        params = SamplingParams(temperature=temperature, logit_bias=others | {NEVER: bias})
        tokens, logprobs = draw([params] * 200, LOGITS.expand(200, -1))
        assert NEVER not in tokens.tolist()
        assert logprobs.isfinite().all()
