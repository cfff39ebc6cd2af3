"""Samples: expanded tokens with their arrays in step, and no sampled token trained twice."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmroll.errors import TrainingError
from filmroll.rollout.trajectory import ROOT, Trajectory
from filmroll.train.batches.samples import branch_advantages, group_advantages, recent, samples
from filmroll.wire.packed import pack, unpack
from filmroll.wire.training import LossWeights, PlacedImage, TrainingSample, check_sample
from tests.train.conftest import FAMILY, PAD, descriptor, sample

RL = LossWeights(rl=1.0)


def test_a_branch_becomes_one_sample_with_everything_in_step(two_turns):
    (made,) = samples(two_turns, FAMILY, advantage=0.7, weights=RL)
    assert made.token_ids.tolist() == [1, PAD, PAD, PAD, 2, 10, 11, PAD, PAD, 3, 12]
    assert made.trained.tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1]
    np.testing.assert_allclose(made.logprobs[[5, 6, 10]], [-0.1, -0.2, -0.3])
    assert made.versions[[5, 6, 10]].tolist() == [4, 4, 5]
    assert made.versions[0] == -1
    assert made.temperatures[5] == 0.5
    assert [(image.offset, image.length) for image in made.images] == [(1, 3), (7, 2)]
    assert made.advantage == 0.7
    check_sample(made)


def test_branches_share_their_prefix_and_train_it_once(two_turns):
    two_turns.add_sampled(2, [13, 14], [-1, -1], temperature=1.0, version=6, finish_reason="length")
    first, second = samples(two_turns, FAMILY, advantage=1.0, weights=RL)
    assert first.token_ids.tolist()[:10] == second.token_ids.tolist()[:10]
    assert second.trained.tolist() == [0] * 10 + [1, 1]
    assert first.name != second.name


def test_tokens_that_branches_share_count_with_the_rollouts_reward():
    """The first branch was a try that was rated and dropped: it trains its own answer alone."""
    tried = Trajectory("t", PAD, reward=1.0)
    sampled = {"temperature": 1.0, "version": 0, "finish_reason": "stop"}
    shared = tried.add_sampled(tried.add_prompt(ROOT, [1], []), [10], [-1], **sampled)
    turn = tried.add_prompt(shared, [2], [])
    dropped = tried.add_sampled(turn, [11], [-1], **sampled)
    tried.add_sampled(turn, [12], [-1], **sampled)
    tried.add_sampled(turn, [13], [-1], **sampled)
    tried.score(dropped, 0.25)
    made = samples(tried, FAMILY, advantage=0.5, weights=RL, scored={dropped: -0.5})
    assert [(one.token_ids[one.trained == 1].tolist(), one.advantage) for one in made] == [
        ([11], -0.5),
        ([10, 12], 0.5),
        ([13], 0.5),
    ]


def test_every_outcome_counts_once_in_its_group():
    plain, tried = Trajectory("a", PAD, reward=1.0), Trajectory("b", PAD, reward=1.0)
    leaf = tried.add_sampled(ROOT, [5], [-1], temperature=1.0, version=0, finish_reason="stop")
    tried.add_sampled(ROOT, [6], [-1], temperature=1.0, version=0, finish_reason="stop")
    tried.score(leaf, 0.0)
    rest = group_advantages([1.0, 1.0, 0.0])
    assert branch_advantages([plain, tried]) == [(rest[0], {}), (rest[1], {leaf: rest[2]})]


def test_what_follows_the_last_token_that_is_trained_is_left_out(two_turns):
    two_turns.add_prompt(3, [PAD, 4], [descriptor(3, 500)])
    (made,) = samples(two_turns, FAMILY, advantage=1.0, weights=RL)
    assert made.tokens == 11
    assert len(made.images) == 2


def test_a_trajectory_without_sampled_tokens_gives_no_sample():
    empty = Trajectory("t", PAD)
    empty.add_prompt(ROOT, [1], [])
    assert samples(empty, FAMILY, advantage=0.0, weights=RL) == []


@given(st.data())
def test_law_whole(data):
    """Whatever graph is grown, each sampled token is trained once and each image keeps its placeholders."""
    made = Trajectory("t", PAD)
    made.add_prompt(ROOT, [1], [])
    for number in range(data.draw(st.integers(1, 12))):
        parent = data.draw(st.integers(0, len(made.nodes) - 1))
        if data.draw(st.booleans()):
            length = data.draw(st.integers(1, 4))
            made.add_sampled(parent, [number] * length, [-1.0] * length, temperature=1, version=1, finish_reason="stop")
        else:
            images = [descriptor(data.draw(st.integers(0, 3)), data.draw(st.integers(1, 5)))]
            made.add_prompt(parent, [2, PAD, 3], images)
    out = [check_sample(one) for one in samples(made, FAMILY, advantage=1.0, weights=RL)]
    assert sum(int(one.trained.sum()) for one in out) == sum(len(n.token_ids) for n in made.nodes if n.sampled)
    for one in out:
        claimed = np.zeros(one.tokens, bool)
        for image in one.images:
            claimed[image.offset : image.offset + image.length] = True
        np.testing.assert_array_equal(claimed, one.token_ids == PAD)
        assert not np.any(one.trained.astype(bool) & claimed)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=16))
def test_advantages_are_centred_and_scaled(rewards):
    advantages = np.array(group_advantages(rewards))
    if np.ptp(rewards) > 1e-6:
        assert abs(advantages.sum()) < 1e-6
        np.testing.assert_allclose(advantages.std(), 1.0, rtol=1e-6)
        assert advantages[np.argmax(rewards)] == advantages.max()


def test_a_group_that_agrees_teaches_nothing():
    assert group_advantages([1.0, 1.0, 1.0]) == [0.0, 0.0, 0.0]
    assert group_advantages([0.1, 0.1, 0.1]) == [0.0, 0.0, 0.0]


def test_samples_travel_whole(two_turns):
    (made,) = samples(two_turns, FAMILY, advantage=0.7, weights=RL)
    back = unpack(pack(made), TrainingSample)
    for name in ("token_ids", "trained", "logprobs", "temperatures", "versions"):
        np.testing.assert_array_equal(getattr(back, name), getattr(made, name))
    assert back.images == made.images
    check_sample(back)


def test_law_linear(two_turns):
    """A turn more costs its own tokens and images, whatever came before."""

    def turn(trajectory, parent, image):
        node = trajectory.add_prompt(parent, [PAD, 3], [descriptor(image, 1000)])
        return trajectory.add_sampled(node, [12], [-0.3], temperature=0.5, version=5, finish_reason="stop")

    sizes, leaf = [], 3
    for number in range(20):
        leaf = turn(two_turns, leaf, number + 10)
        sizes.append(len(pack(two_turns)))
    growth = np.diff(sizes)
    assert growth.max() - growth.min() <= 8
    before = len(pack(two_turns))
    turn(two_turns, leaf, 10)
    assert len(pack(two_turns)) - before < growth.min() / 2, "an image seen before costs no second descriptor"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"trained": np.ones(3, np.uint8)}, "trained"),
        ({"logprobs": np.zeros(10, np.float64)}, "logprobs"),
        ({"token_ids": np.zeros(10, np.int64)}, "token_ids"),
        ({"versions": None}, "versions"),
        ({"images": [PlacedImage(descriptor(0, 3), 8)]}, "images"),
        ({"images": [PlacedImage(descriptor(0, 3), 2), PlacedImage(descriptor(1, 3), 4)]}, "images"),
        ({"images": [PlacedImage(descriptor(0, 3), -1)]}, "images"),
    ],
)
def test_a_sample_that_disagrees_with_itself_is_refused(changes, field):
    with pytest.raises(TrainingError) as refusal:
        check_sample(msgspec.structs.replace(sample(10), **changes))
    assert refusal.value.field == field


# How old a sample may be


@pytest.mark.parametrize(
    ("versions", "most", "left"),
    [
        ([-1, -1, 5, 5], 0, True),
        ([-1, 4, -1, 5], 0, False),
        ([-1, 4, -1, 5], 1, True),
        ([-1, 0, 5, 5], 4, False),
        ([-1, 0, 5, 5], 5, True),
        ([-1, -1, -1, -1], 0, True),
        ([6, 6, 6, 6], 0, True),
    ],
)
def test_a_sample_is_as_old_as_the_oldest_token_that_was_sampled_in_it(versions, most, left):
    one = sample(4, versions=np.array(versions, np.int32))
    assert recent([one], 5, most=most) == [one] * left
