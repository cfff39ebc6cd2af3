"""The loss: its gradient is the policy gradient where nothing clips, and nothing where it does."""

from dataclasses import replace

import pytest
import torch

from filmroll.materialize.sheet import Sheet
from filmroll.train.loader import Batch
from filmroll.train.loss import loss
from filmroll.wire.receipt import Receipt


def batch(old, advantages, rl=1.0, ce=0.0):
    count = len(old)
    return Batch(
        inputs={},
        sheet=Sheet.of([]),
        rows=torch.zeros(count, dtype=torch.long),
        columns=torch.ones(count, dtype=torch.long),
        token_ids=torch.zeros(count, dtype=torch.long),
        logprobs=torch.tensor(old),
        temperatures=torch.ones(count),
        versions=torch.zeros(count, dtype=torch.int32),
        advantages=torch.tensor(advantages),
        rl_weights=torch.full((count,), rl),
        cross_entropy_weights=torch.full((count,), ce),
        receipt=Receipt(),
    )


def gradient(new, made):
    logprobs = torch.tensor(new, requires_grad=True)
    loss(logprobs, made, clip_low=0.2, clip_high=0.3, max_ratio=4.0).total.backward()
    return logprobs.grad.tolist()


def test_on_policy_it_is_the_policy_gradient():
    assert gradient([-1.0, -2.0], batch([-1.0, -2.0], [2.0, -3.0])) == pytest.approx([-2.0, 3.0])


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
    old, new = [-2.0], [-2.0 + float(torch.log(torch.tensor(ratio)))]
    made = batch(old, [advantage])
    assert (gradient(new, made) == [0.0]) == clips
    assert loss(torch.tensor(new), made, clip_low=0.2, clip_high=0.3, max_ratio=4.0).clipped.tolist() == [float(clips)]


def test_a_token_long_left_behind_pulls_no_more():
    made = batch([-9.0], [-1.0])
    assert gradient([-9.0 + 1.3], made) != [0.0]
    assert gradient([-9.0 + 1.5], made) == [0.0]
    held = loss(torch.tensor([-1.0]), made, clip_low=0.2, clip_high=0.3, max_ratio=4.0)
    assert held.ratios.tolist() == pytest.approx([4.0])


def test_cross_entropy_counts_by_its_weight():
    assert gradient([-1.0, -2.0], batch([0.0, 0.0], [5.0, 5.0], rl=0.0, ce=0.5)) == pytest.approx([-0.5, -0.5])


def test_an_infinite_ratio_of_an_unweighted_stream_stays_out():
    made = batch([-2e38, -1.0], [1.0, 1.0], rl=0.0, ce=1.0)
    assert gradient([-1.0, -1.0], made) == pytest.approx([-1.0, -1.0])


def test_nothing_else_moves_the_loss():
    made = batch([-1.0], [1.0])
    total = loss(torch.tensor([-1.0]), made, clip_low=0.2, clip_high=0.2, max_ratio=4.0).total
    other = replace(made, temperatures=torch.full((1,), 9.0))
    assert loss(torch.tensor([-1.0]), other, clip_low=0.2, clip_high=0.2, max_ratio=4.0).total == total
