"""The graph: branches share their prefix, images are kept once, and it travels whole."""

import pytest

from filmroll.errors import PrefixError
from filmroll.rollout.trajectory import ROOT, Trajectory
from filmroll.wire.packed import pack, unpack
from tests.train.conftest import PAD, descriptor


def answer(trajectory, parent, tokens):
    return trajectory.add_sampled(
        parent, tokens, [-0.5] * len(tokens), temperature=1.0, version=0, finish_reason="stop"
    )


def test_branches_share_nodes_and_know_their_own_tokens():
    made = Trajectory("t", PAD)
    opening = made.add_prompt(ROOT, [1, PAD], [descriptor(1)])
    one, two = answer(made, opening, [10]), answer(made, opening, [11, 12])
    later = made.add_prompt(two, [PAD, 2], [descriptor(2)])
    assert made.leaves() == [one, later]
    assert made.branch_tokens(made.branch(one)).tolist() == [1, PAD, 10]
    assert made.branch_tokens(made.branch(later)).tolist() == [1, PAD, 11, 12, PAD, 2]
    assert made.branch_images(made.branch(later)) == [descriptor(1), descriptor(2)]


def test_an_image_seen_again_is_the_same_table_row():
    made = Trajectory("t", PAD)
    node = made.add_prompt(ROOT, [PAD, PAD], [descriptor(1), descriptor(1)])
    made.add_prompt(node, [PAD], [descriptor(1)])
    assert made.images == [descriptor(1)]
    assert made.nodes[0].images == (0, 0)


def test_it_survives_the_wire():
    made = Trajectory("t", PAD)
    node = made.add_prompt(ROOT, [1, PAD], [descriptor(1)])
    answer(made, node, [10, 11])
    made.reward, made.metrics, made.expected, made.answer = 0.5, {"partial": 0.25}, "AB", "AC"
    back = unpack(pack(made), Trajectory)
    assert (back.name, back.reward, back.metrics, back.images) == ("t", 0.5, {"partial": 0.25}, [descriptor(1)])
    assert back.nodes[1].token_ids.tolist() == [10, 11]
    assert back.nodes[1].logprobs.tolist() == [-0.5, -0.5]
    assert back.nodes[0].logprobs is None


@pytest.mark.parametrize("tokens", [[1], [PAD, PAD]])
def test_pads_and_images_must_agree(tokens):
    with pytest.raises(PrefixError):
        Trajectory("t", PAD).add_prompt(ROOT, tokens, [descriptor(1)])


@pytest.mark.parametrize("parent", [5, -2])
def test_a_node_needs_a_parent_that_is_there(parent):
    with pytest.raises(PrefixError):
        Trajectory("t", PAD).add_prompt(parent, [1], [])
