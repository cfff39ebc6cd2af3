"""The graph: branches share their prefix, images are kept once, and it travels whole."""

import sys

import msgspec
import numpy as np
import pytest

from filmroll.errors import PrefixError
from filmroll.rollout.trajectory import ROOT, Node, Trajectory, check_trajectory
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


def test_a_conversation_rendered_anew_shares_what_was_sampled_and_parts_what_it_leaves():
    made = Trajectory("t", PAD)
    said = answer(made, made.add_prompt(ROOT, [1, PAD, 2], [descriptor(1)]), [10, 11, 12])
    made.score(said, 0.5)
    anew = made.add_conversation([1, PAD, 2, 10, 11, 20, PAD], [descriptor(1), descriptor(2)])
    assert made.leaves() == [said, anew]
    assert made.branch_tokens(made.branch(said)).tolist() == [1, PAD, 2, 10, 11, 12]
    assert [node.token_ids.tolist() for node in made.branch(anew)] == [[1, PAD, 2], [10, 11], [20, PAD]]
    assert [node.sampled for node in made.branch(anew)] == [False, True, False]
    earlier, later = made.branch(said)[1:]
    assert (earlier.reward, earlier.finish_reason) == (None, "")
    assert (later.reward, later.finish_reason) == (0.5, "stop")


def test_a_conversation_that_was_there_before_is_the_same_node():
    made = Trajectory("t", PAD)
    node = made.add_conversation([1, PAD, 2], [descriptor(1)])
    assert made.add_conversation([1, PAD, 2], [descriptor(1)]) == node
    assert len(made.nodes) == 1


def test_the_same_tokens_with_another_image_are_another_conversation():
    made = Trajectory("t", PAD)
    one = made.add_conversation([1, PAD, 2], [descriptor(1)])
    other = made.add_conversation([1, PAD, 2], [descriptor(2)])
    assert made.branch_images(made.branch(one)) == [descriptor(1)]
    assert made.branch_images(made.branch(other)) == [descriptor(2)]


def test_compaction_again_and_again_keeps_no_copy():
    """The head is kept once, however often the conversation is rendered with less of its history."""
    made = Trajectory("t", PAD)
    head = [*range(100, 600), PAD]
    for turn in range(100):
        answer(made, made.add_conversation([*head, 1000 + turn], [descriptor(1)]), [10, 11])
    assert sum(len(node.token_ids) for node in made.nodes) == len(head) + 100 * 3
    assert made.images == [descriptor(1)]


def test_ten_times_the_images_cost_ten_times_the_work():
    """Counted in calls, not in seconds."""

    def calls(count):
        made, counted = Trajectory("t", PAD), 0
        images = [descriptor(number) for number in range(count)]

        def count_calls(*_):
            nonlocal counted
            counted += 1

        sys.setprofile(count_calls)
        try:
            node = ROOT
            for image in images:
                node = made.add_prompt(node, [PAD], [image])
        finally:
            sys.setprofile(None)
        return counted

    assert calls(1000) < 12 * calls(100)


def test_nothing_samples_an_image():
    made = Trajectory("t", PAD)
    with pytest.raises(PrefixError, match="placeholder"):
        answer(made, made.add_prompt(ROOT, [1], []), [10, PAD])


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (Node(7, np.array([1], np.int32)), "its parent is 7"),
        (Node(-2, np.array([1], np.int32)), "its parent is -2"),
        (Node(2, np.array([1], np.int32)), "no root"),
        (Node(3, np.array([1], np.int32)), "no root"),
        (Node(0, np.array([PAD], np.int32)), "1 pads for 0 images"),
        (Node(0, np.array([1], np.int32), images=(0,)), "0 pads for 1 images"),
        (Node(0, np.array([PAD], np.int32), images=(1,)), "the table has 1"),
        (Node(0, np.array([PAD], np.int32), images=(-1,)), "the table has 1"),
        (Node(0, np.array([1], np.int32), logprobs=np.zeros(2, np.float32)), "1 tokens were sampled with 2 logprobs"),
        (Node(0, np.array([PAD], np.int32), (0,), logprobs=np.zeros(1, np.float32)), "placeholder"),
    ],
)
def test_a_trajectory_that_disagrees_with_itself_is_refused(node, said):
    made = Trajectory("t", PAD)
    parent = made.add_prompt(made.add_prompt(ROOT, [1, PAD], [descriptor(1)]), [2], [])
    wrong = msgspec.structs.replace(made, nodes=[*made.nodes, node, Node(2, np.array([1], np.int32))])
    assert parent == 1
    with pytest.raises(PrefixError, match=said):
        check_trajectory(wrong)
