"""The loss: each variant against a formula of its own, and the laws that all of them keep."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from filmroll.errors import TrainingError
from filmroll.train.learning.loss import Loss, loss
from filmroll.train.learning.objective import LossConfig, Trained
from filmroll.wire.training import LossWeights
from tests.train.conftest import sample
from tests.train.tokens import Tokens, batch, expected, joined, trained

CLIPPED = LossConfig(clip_low=0.2, clip_high=0.3, max_ratio=4.0)
LENGTHS = ("tokens", "samples", "constant")
RL = LossWeights(rl=1.0)


def parted(samples, config=CLIPPED, whole=None) -> tuple[Loss, np.ndarray]:
    """The loss of these samples as a micro-batch of a step, and its gradient for each of their tokens."""
    weighed = [one for one in samples if one.weights.any]
    policy = joined([one.policy for one in weighed]).requires_grad_()
    held = any(one.weights.kl for one in weighed)
    reference = joined([one.reference or [0.0] * len(one.policy) for one in weighed]) if held else None
    lost = loss(policy, batch(samples), whole or trained(samples), config, reference)
    lost.total.backward()
    return lost, policy.grad.numpy()


def gradient(samples, config=CLIPPED) -> list[float]:
    return parted(samples, config)[1].tolist()


# What papers and other trainers define


def drawn(noise, count=6, weights=None):
    """Samples of several lengths, both signs of advantage, ratios on both sides of every bound."""

    def one(number):
        length = int(noise.integers(1, 6))
        engine = noise.normal(-2, 0.7, length)
        return Tokens(
            engine.tolist(),
            (engine + noise.normal(0, 0.6, length)).tolist(),
            float(noise.normal(0, 1.5)),
            weights or LossWeights(rl=float(number % 4), cross_entropy=float(number % 3) / 2, kl=float(number % 2)),
            (engine + noise.normal(0, 0.8, length)).tolist(),
        )

    return [one(number) for number in range(count)]


VARIANTS = [
    {"length": length, "ratio": ratio, "truncate_at": cut, "kl_estimator": estimator}
    for length, ratio, cut, estimator in itertools.product(
        LENGTHS, ("token", "sequence"), (0.0, 1.0, 2.0), ("k2", "k3")
    )
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda one: "-".join(map(str, one.values())))
def test_every_variant_is_its_formula_and_so_is_its_gradient(variant):
    config = LossConfig(**variant, constant=7, clip_low=0.2, clip_high=0.28, max_ratio=1.9, kl=0.5)
    for seed in range(4):
        samples = drawn(np.random.default_rng(seed))
        lost, found = parted(samples, config)
        total, slopes = expected(samples, config)
        assert float(lost.total.detach()) == pytest.approx(total, abs=1e-12)
        assert found == pytest.approx(slopes, abs=1e-8)


# Two samples, worked out by hand: ratios 1.5 and 1 with advantage 2, ratio 0.5 with advantage -1.
BY_HAND = [
    Tokens([-1.0, -1.0], [-1.0 + float(np.log(1.5)), -1.0], 2.0),
    Tokens([-1.0], [-1.0 + float(np.log(0.5))], -1.0),
]


@pytest.mark.parametrize(
    ("config", "total"),
    [
        # Gains: min(3, 2.4) and 2; min(-0.5, -0.8).
        (LossConfig(), -(2.4 + 2 - 0.8) / 3),
        (LossConfig(clip_high=0.28), -(2.56 + 2 - 0.8) / 3),
        (LossConfig(length="samples"), -((2.4 + 2) / 2 - 0.8) / 2),
        (LossConfig(length="constant", constant=10), -(2.4 + 2 - 0.8) / 20),
        # Weights min(1.5, C), 1 and 0.5; ratios are 1.
        (LossConfig(truncate_at=2.0), -(1.5 * 2 + 2 - 0.5) / 3),
        (LossConfig(truncate_at=1.2), -(1.2 * 2 + 2 - 0.5) / 3),
        # Ratios of the samples: sqrt(1.5) = 1.2247 and 0.5.
        (LossConfig(ratio="sequence", length="samples", clip_high=0.3), -(2 * 1.5**0.5 - 0.8) / 2),
        (LossConfig(ratio="sequence", length="samples", clip_high=0.1), -(2 * 1.1 - 0.8) / 2),
    ],
    ids=["clip", "clip-higher", "samples", "constant", "truncated", "truncated-lower", "sequence", "sequence-clipped"],
)
def test_golden_values(config, total):
    assert float(parted(BY_HAND, config)[0].total.detach()) == pytest.approx(total, abs=1e-12)


def test_a_divergence_by_hand():
    away = Tokens([0.0], [-2.0], weights=LossWeights(kl=0.5), reference=[-1.0])
    assert float(parted([away])[0].total.detach()) == pytest.approx(0.5 * (np.e - 2))
    assert float(parted([away], LossConfig(kl_estimator="k2"))[0].total.detach()) == pytest.approx(0.25)


# What clips, and what does not


def test_on_policy_it_is_the_policy_gradient():
    samples = [Tokens([-1.0], [-1.0], 2.0), Tokens([-2.0], [-2.0], -3.0)]
    assert gradient(samples) == pytest.approx([-2.0 / 2, 3.0 / 2])


@pytest.mark.parametrize(
    ("ratio", "advantage", "clips"),
    [
        (1.29, 1.0, False),
        (1.31, 1.0, True),
        (0.5, 1.0, False),
        (0.79, -1.0, True),
        (0.81, -1.0, False),
        (3.9, -1.0, False),
    ],
)
def test_it_clips_only_where_the_step_would_go_too_far(ratio, advantage, clips):
    made = [Tokens([-2.0], [-2.0 + float(np.log(ratio))], advantage)]
    lost, found = parted(made)
    assert (found.tolist() == [0.0]) == clips
    assert lost.clipped.tolist() == [float(clips)]


def test_a_token_long_left_behind_pulls_no_more():
    assert gradient([Tokens([-9.0], [-9.0 + 1.3], -1.0)]) != [0.0]
    assert gradient([Tokens([-9.0], [-9.0 + 1.5], -1.0)]) == [0.0]
    assert parted([Tokens([-9.0], [-1.0], -1.0)])[0].ratios.tolist() == pytest.approx([4.0])


def test_truncation_weighs_instead_of_clipping():
    """A token far beyond the clip still pulls, by no more than the bound; one far below pulls a little."""
    config = LossConfig(truncate_at=2.0)
    lost, found = parted([Tokens([-5.0, -1.0, -1.0], [-1.0, -5.0, -1.0], 1.0)], config)
    assert found * 3 == pytest.approx([-2.0, -np.exp(-4.0), -1.0])
    assert lost.truncated.tolist() == [1.0, 0.0, 0.0]
    assert lost.clipped.tolist() == [0.0, 0.0, 0.0]
    assert lost.ratios.tolist() == pytest.approx([2.0, np.exp(-4.0), 1.0])


def test_a_samples_ratio_clips_all_of_it_or_nothing():
    """Two tokens, one up and one down: each beyond the clip alone, together where they were."""
    split = [Tokens([-1.0, -1.0], [-0.5, -1.5], 1.0)]
    assert gradient(split)[0] == 0.0
    assert gradient(split, LossConfig(ratio="sequence")) == pytest.approx([-0.5, -0.5])
    assert gradient([Tokens([-1.0, -1.0], [-0.2, -1.0], 1.0)], LossConfig(ratio="sequence")) == [0.0, 0.0]


# Laws


def test_cross_entropy_counts_by_its_weight():
    samples = [Tokens([0.0, 0.0], [-1.0, -2.0], 5.0, LossWeights(cross_entropy=0.5))]
    assert gradient(samples) == pytest.approx([-0.25, -0.25])


@pytest.mark.parametrize("length", LENGTHS)
def test_cross_entropy_is_a_mean_over_tokens_whatever_the_policys_length(length):
    samples = [Tokens([0.0] * 3, [-1.0] * 3, weights=LossWeights(cross_entropy=1.0)), Tokens([0.0], [-5.0])]
    assert gradient(samples, LossConfig(length=length))[:3] == pytest.approx([-0.25] * 3)


def test_an_infinite_ratio_of_an_unweighted_stream_stays_out():
    samples = [Tokens([-2e38, -1.0], [-1.0, -1.0], 1.0, LossWeights(cross_entropy=1.0))]
    for cut in (0.0, 2.0):
        lost, found = parted(samples, LossConfig(truncate_at=cut))
        assert found == pytest.approx([-0.5, -0.5])
        assert lost.ratios.tolist() == [1.0, 1.0], "nothing is told of it either"


def test_what_is_infinitely_far_stays_finite():
    weights = LossWeights(rl=1.0, kl=1.0)
    samples = [Tokens([-2e38], [-1.0], -1.0, weights, [-2e38]), Tokens([-1.0], [-1e3], -1.0, weights, [-1.0])]
    for cut in (0.0, 2.0):
        lost, found = parted(samples, LossConfig(truncate_at=cut))
        assert torch.isfinite(lost.total)
        assert np.isfinite(found).all()


def test_nothing_else_moves_the_loss():
    made = batch([Tokens([-1.0], [-1.0])])
    policy = torch.tensor([-1.0], dtype=torch.float64)
    total = loss(policy, made, Trained(1, 1), CLIPPED).total
    other = replace(made, temperatures=torch.full((1,), 9.0), versions=torch.full((1,), 5))
    assert loss(policy, other, Trained(1, 1), CLIPPED).total == total


@st.composite
def steps(draw):
    return drawn(np.random.default_rng(draw(st.integers(0, 2**31))), draw(st.integers(1, 7)))


@st.composite
def configs(draw):
    variant = draw(st.sampled_from(VARIANTS))
    return LossConfig(**variant, constant=draw(st.integers(1, 99)), clip_high=draw(st.floats(0, 1)))


few = settings(max_examples=60, deadline=None)


@few
@given(steps(), configs(), st.randoms(use_true_random=False))
def test_law_parted(samples, config, noise):
    """However a step's samples are divided into micro-batches and ranks, the parts add up to the whole."""
    whole, slopes = parted(samples, config)
    order = list(range(len(samples)))
    noise.shuffle(order)
    middle = noise.randint(0, len(order))
    halves = [[samples[one] for one in half] for half in (order[:middle], order[middle:])]
    assert trained(halves[0]) + trained(halves[1]) == trained(samples)
    parts = [parted(half, config, trained(samples)) for half in halves]
    together = sum(float(lost.total.detach()) for lost, _ in parts)
    assert together == pytest.approx(float(whole.total.detach()), abs=1e-12)
    lengths = [len(one.policy) if one.weights.any else 0 for one in samples]
    by_sample = np.split(slopes, np.cumsum(lengths)[:-1])
    wanted = np.concatenate([by_sample[one] for one in order])
    assert np.concatenate([found for _, found in parts]) == pytest.approx(wanted, abs=1e-12)


@few
@given(steps(), configs(), st.integers(0, 7))
def test_law_silent(samples, config, place):
    """A sample without weight changes nothing, whatever is in it."""
    silent = Tokens([-1.0] * 5, [-2e38] * 5, 1e9, LossWeights())
    lost, found = parted(samples, config)
    more, also = parted([*samples[:place], silent, *samples[place:]], config)
    assert torch.equal(more.total, lost.total)
    assert np.array_equal(also, found)
    assert torch.equal(more.ratios, lost.ratios)


@few
@given(steps(), configs())
def test_law_on_policy(samples, config):
    """Where policy and engine agree, every variant is the plain policy gradient, of another mean over lengths."""
    samples = [replace(one, policy=one.engine, weights=RL) for one in samples]
    tokens, count = sum(len(one.policy) for one in samples), len(samples)

    def share(length):
        return {"tokens": 1 / tokens, "samples": 1 / (length * count), "constant": 1 / (config.constant * count)}

    wanted = [-one.advantage * share(len(one.policy))[config.length] for one in samples for _ in one.policy]
    lost, found = parted(samples, config)
    assert found == pytest.approx(wanted, abs=1e-12)
    assert not lost.clipped.any()
    assert not lost.truncated.any()


@few
@given(steps(), configs(), st.integers(2, 4))
def test_law_lengths(samples, config, times):
    """Every token said several times over: a mean over tokens stays, a mean by a constant grows as much."""
    samples = [replace(one, weights=LossWeights(rl=one.weights.rl, kl=one.weights.kl)) for one in samples]

    def repeated(one):
        return replace(
            one,
            engine=list(one.engine) * times,
            policy=list(one.policy) * times,
            reference=list(one.reference) * times,
        )

    before, after = (float(parted(made, config)[0].total.detach()) for made in (samples, [*map(repeated, samples)]))
    assert after == pytest.approx(before * (times if config.length == "constant" else 1), abs=1e-12)


@few
@given(steps(), configs(), st.floats(0.1, 10))
def test_law_scaled(samples, config, factor):
    """Advantages and divergence by a factor, and so is the loss."""
    samples = [replace(one, weights=LossWeights(rl=1.0)) for one in samples]
    stronger = [replace(one, advantage=one.advantage * factor) for one in samples]
    before, after = (float(parted(made, config)[0].total.detach()) for made in (samples, stronger))
    assert after == pytest.approx(before * factor, rel=1e-9, abs=1e-12)


# Staying close to a reference


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_at_the_reference_nothing_pulls(estimator):
    there = [Tokens([-1.0, -3.0], [-2.0, -0.5], weights=LossWeights(kl=2.0), reference=[-2.0, -0.5])]
    lost, found = parted(there, LossConfig(kl_estimator=estimator))
    assert float(lost.total.detach()) == 0.0
    assert found.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("away", [-1.0, -0.1, 0.1, 1.0])
def test_away_from_the_reference_it_pulls_back(estimator, away):
    lost, (slope,) = parted(
        [Tokens([-1.0], [-2.0 + away], weights=LossWeights(kl=2.0), reference=[-2.0])],
        LossConfig(kl_estimator=estimator),
    )
    assert lost.divergences.item() > 0
    assert slope * away > 0, "a step against the gradient goes towards the reference"


def test_a_weight_for_a_divergence_without_a_reference_is_refused():
    held = batch([Tokens([-1.0], [-1.0], weights=LossWeights(kl=1.0))])
    with pytest.raises(TrainingError, match="the trainer has none"):
        loss(torch.tensor([-1.0]), held, Trained(1, 1), CLIPPED)


# What a step trains


def test_only_weighed_and_predicted_tokens_count():
    silent = sample(6, weights=LossWeights())
    assert sample(6).targets.tolist() == [1, 2, 3, 4, 5]
    assert silent.targets.tolist() == []
    idle = sample(4, trained=np.zeros(4, np.uint8))
    assert Trained.of([sample(6), silent, idle, sample(3)]) == Trained(tokens=7, samples=2)
