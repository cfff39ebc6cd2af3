"""What a step tells of the tokens that it trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from filmroll.train.learning.forward import Forward
from filmroll.train.learning.loss import loss
from filmroll.train.learning.objective import LossConfig
from filmroll.train.learning.tally import Figures, Tally
from filmroll.wire.receipt import Receipt
from filmroll.wire.training import LossWeights
from tests.train.tokens import Tokens, batch, joined, trained

PRESENT = 3


def told(samples, versions, config):
    """The report of a step of these samples, each in a micro-batch of its own, by the present version."""
    figures = Figures()
    for one, version in zip(samples, versions, strict=True):
        made = batch([one], torch.float32)
        made = replace(made, versions=torch.full((len(made.logprobs),), version))
        policy = joined([one.policy], torch.float32)
        lost = loss(policy, made, trained(samples), config, joined([one.reference or one.policy], torch.float32))
        figures.add(Forward(policy, torch.ones_like(policy), Receipt()), lost, made, PRESENT)
    return figures.tally().report(1.0, 0.0)


def test_the_mismatch_is_of_tokens_that_the_present_version_sampled():
    engine, policy = [-1.0, -2.0], [-1.3, -1.6]
    samples = [Tokens(engine, policy), Tokens([-1.0], [-9.0])]
    report = told(samples, [PRESENT, PRESENT - 1], LossConfig())
    apart = np.subtract(policy, engine)
    assert report.mismatch_kl == pytest.approx(float((np.exp(apart) - apart - 1).mean()), rel=1e-5)
    assert report.logprob_gap_mean == pytest.approx(0.35, rel=1e-5)
    assert report.logprob_gap_max == pytest.approx(0.4, rel=1e-5)
    assert report.on_policy == pytest.approx(2 / 3)


def test_a_mismatch_of_float_noise_is_told():
    (gap,) = np.float32([-1.0]) - np.nextafter(np.float32([-1.0]), np.float32(0))
    report = told([Tokens([-1.0], [-1.0 - float(gap)])], [PRESENT], LossConfig())
    assert report.mismatch_kl == pytest.approx(float(gap) ** 2 / 2, rel=1e-2)


def test_shares_are_of_trained_tokens():
    samples = [
        Tokens([-3.0, -1.0, -1.0], [-1.0, -1.0, -1.0]),
        Tokens([-1.0], [-1.0], weights=LossWeights(rl=1.0, kl=1.0), reference=[-2.0]),
    ]
    report = told(samples, [PRESENT] * 2, LossConfig())
    assert (report.clip_fraction, report.truncated_fraction) == (0.25, 0.0)
    assert report.reference_kl == pytest.approx(np.exp(-1), rel=1e-5), "over the one token that is held"
    report = told(samples, [PRESENT] * 2, LossConfig(truncate_at=2.0))
    assert (report.clip_fraction, report.truncated_fraction) == (0.0, 0.25)
    assert report.ratio_max == 2.0
    assert report.trained_tokens == 4


def test_a_number_that_no_token_stands_for_is_none():
    report = Tally().report(0.0, 0.0)
    assert (report.loss, report.trained_tokens, report.updated) == (0.0, 0, False)
    assert (
        report.entropy is report.ratio_max is report.clip_fraction is report.mismatch_kl is report.reference_kl is None
    )
    assert told([Tokens([-1.0], [-1.0])], [PRESENT - 1], LossConfig()).mismatch_kl is None
