"""Ranks on two machines, started by a torchrun on each: they train as one process does, and wait with a bound."""

import os
import signal

import pytest

from filmroll.errors import ConfigError
from filmroll.run.network import card_of
from filmroll.run.processes.health import free_port
from filmroll.train.step import TrainerConfig
from tests.train.test_ranks import FIRST, PATIENCE, Together, alone, assert_same, ended

HERE = "127.0.0.1"
THERE = "127.0.0.2"
"""The same machine at another address, by which it can be reached as well."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


def both(place, model, store, do, fault="", patience=PATIENCE):
    """The ranks of two machines, which meet at the first one's address."""
    meeting = {"host": THERE, "port": free_port(THERE), "address": HERE, "patience": patience}
    # The second comes first, and waits.
    return [Together(place, model, store, do, fault, node, meeting=meeting) for node in "10"][::-1]


def test_they_train_as_one_process_does_and_as_those_of_one_machine_do(tiny_model, store, tmp_path):
    do = [*FIRST[:5], ["save", 5], ["publish", 1], ["step", 5], ["restore", 0], ["step", 5]]
    one = alone(tmp_path / "one", tiny_model, store, do)
    beside = Together(tmp_path / "beside", tiny_model, store, do).answers()
    first, second = both(tmp_path / "apart", tiny_model, store, do)
    apart = first.answers()
    for at in (0, 1, 2, 3, 4, 7, 9):
        assert_same(apart[at], one[at])
        assert_same(apart[at], beside[at])
    assert_same(apart[9], apart[7])
    assert len(list((tmp_path / "apart" / "checkpoints" / "step_000006").glob("*.safetensors"))) == 2
    second.end()
    assert all(map(ended, second.pids()))


def assert_out_of_step(first):
    """Rank 0 has noticed, and can do nothing but end."""
    (said,) = first.answers()
    assert (said["error"], said["out_of_step"]) == ("TrainingError", True)
    assert "a process of the trainer was lost" in said["text"]
    assert all(map(ended, first.pids()))


@pytest.mark.faults
def test_what_fails_on_one_machine_is_told_there_and_the_other_notices(tiny_model, store, tmp_path):
    first, second = both(tmp_path, tiny_model, store, [["step", 0]], "fails")
    assert second.process.wait(PATIENCE) == 1
    assert "rank 1 of 2 failed: ValueError: this layer cannot go on" in second.log.read_text().splitlines()[-1]
    assert_out_of_step(first)


@pytest.mark.faults
def test_a_machine_that_is_killed_ends_the_other(tiny_model, store, tmp_path):
    first, second = both(tmp_path, tiny_model, store, [["step", 0]], "waits")
    first.wait_for("waiting")
    second.process.kill()
    os.kill(first.pids()[1], signal.SIGKILL)
    assert_out_of_step(first)


@pytest.mark.faults
@pytest.mark.parametrize("node", ["0", "1"])
def test_one_that_waits_for_another_which_never_comes_gives_up(tiny_model, store, tmp_path, node):
    meeting = {"host": HERE, "port": free_port(), "address": HERE, "patience": 2.0}
    waiting = Together(tmp_path, tiny_model, store, [], "", node, meeting=meeting)
    assert waiting.process.wait(PATIENCE) == 1
    words = waiting.log.read_text().splitlines()[-1]
    assert f"node {node} of the trainer's 2 did not meet the others at {HERE}:" in words
    assert "within 2 s" in words


def test_the_card_is_the_one_that_has_the_address():
    assert card_of(HERE) == card_of(THERE)
    with pytest.raises(ConfigError, match=r"has the address 203\.0\.113\.7"):
        card_of("203.0.113.7")


def test_ranks_are_shared_evenly():
    assert TrainerConfig(ranks=4, nodes=2).nodes == 2
    with pytest.raises(ValueError, match="ranks is 3, which 2 nodes do not share evenly"):
        TrainerConfig(ranks=3, nodes=2)
