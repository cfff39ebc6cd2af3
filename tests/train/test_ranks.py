"""Two processes train as one does, to written tolerances; what stops one of them stops both, and is said once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors import safe_open

from filmroll.engine.weights import INDEX, MANIFEST, read_weights, version_folder
from filmroll.materialize.feed import load_model
from filmroll.train.learning.ranks import Ranks
from tests.train.together import answers, team_of

LOSS, NORM, WEIGHTS = 1e-5, 1e-4, 1e-5
"""How far, relative, losses and gradient norms may be apart over 20 steps; and, absolute, weights after them."""
MEANS = ("entropy", "ratio_mean", "ratio_max", "clip_fraction", "on_policy", "logprob_gap_mean", "logprob_gap_max")
COUNTS = ("trained_tokens", "samples_masked")

FIRST, LAST = [["step", number] for number in range(10)], [["step", number] for number in range(10, 20)]
WHOLE = [*FIRST, ["save", 10], *LAST, ["publish", 1], ["plain", 20], ["single", 21], ["measure", 3]]
"""What is compared, and behind it what only two can do."""
AND_THEN = [["lost", 40], ["measure", 3], ["step", 22], ["restore", 0], *LAST[:3]]
PATIENCE = 250


class Together:
    """Two ranks in a folder of their own; or one of two machines, that of this number. `then` are further plans."""

    def __init__(self, place, model, store, do, fault="", node="", then=(), **more):
        self.place = place
        plans = [planned(place, model, store, do, fault=fault, **more), *then]
        (place / "plans.json").write_text(json.dumps(plans))
        self.log = place / f"log{node}"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.train.together", str(place / "plans.json"), *node],
                stdout=log, stderr=log, cwd=Path(__file__).parents[2],
            )  # fmt: skip

    def wait_for(self, name, place=None):
        end = time.monotonic() + PATIENCE
        while not ((place or self.place) / name).exists():
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.05)

    def answers(self):
        """Those of the only plan."""
        found = self.answers_in(self.place)
        self.end()
        return found

    def answers_in(self, place):
        """Those of the plan that has this folder."""
        self.wait_for("finished", place)
        return [json.loads(line) for line in (place / "answers").read_text().splitlines()]

    def pids(self):
        return [int((self.place / f"pid_{rank}").read_text()) for rank in (0, 1)]

    def end(self):
        self.process.terminate()
        self.process.wait(60)


def planned(place, model, store, do, fault="", **more):
    place.mkdir(exist_ok=True)
    return {"place": str(place), "model": str(model), "store": str(store), "do": do, "fault": fault, **more}


def alone(place, model, store, do, **more):
    told = planned(place, model, store, do, **more)
    return list(answers(told, team_of(told, Ranks())))


OBJECTIVES = {
    "samples": {"length": "samples", "ratio": "sequence", "clip_high": 0.05, "kl": 0.5},
    "constant": {"length": "constant", "constant": 9, "truncate_at": 1.1, "kl": 0.5, "kl_estimator": "k2"},
}
DRESS = {"lora_rank": 4, "freeze_vision": True, "gradient_checkpointing": True}
MINIMIZED = [*FIRST[:3], ["nothing", 3], ["step", 4]]
DRESSED = [*FIRST[:3], ["save", 3], ["publish", 1], ["step", 3], ["restore", 0], ["step", 3]]
TIED = [*FIRST[:3], ["save", 3], ["publish", 1], ["restore", 0], ["step", 3]]
GO_ON = [["restore", 0], *LAST]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def by_one(tiny_model, store, tmp_path_factory):
    place = tmp_path_factory.mktemp("one")
    return place, alone(place, tiny_model, store, WHOLE)


@pytest.fixture(scope="module")
def two(by_one, tiny_model, tied_model, store, tmp_path_factory):
    """What two ranks have done and answered, by the plan's name: one start for all of it."""
    folder = tmp_path_factory.mktemp("two")
    plans = [
        *(
            planned(folder / name, tiny_model, store, MINIMIZED, objective=objective)
            for name, objective in OBJECTIVES.items()
        ),
        planned(folder / "dressed", tiny_model, store, DRESSED, dress=DRESS),
        planned(folder / "tied", tied_model, store, TIED),
        planned(folder / "gone on", tiny_model, store, GO_ON),
    ]
    shutil.copytree(by_one[0] / "checkpoints", folder / "gone on" / "checkpoints")
    together = Together(folder / "whole", tiny_model, store, [*WHOLE, *AND_THEN], then=plans)
    yield lambda name: (folder / name, together.answers_in(folder / name))
    together.end()


@pytest.fixture(scope="module")
def by_two(two):
    return two("whole")


def assert_same(found, expected):
    assert found["loss"] == pytest.approx(expected["loss"], rel=LOSS)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=NORM)
    for name in MEANS:
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    for name in COUNTS:
        assert found[name] == expected[name], name


def test_twenty_steps_are_those_of_one_process(by_one, by_two):
    steps = [pair for pair in zip(by_two[1], by_one[1], strict=False) if pair[1] and "loss" in pair[1]]
    twenty = [pair for pair in steps if "grad_norm" in pair[0]][:20]
    assert len(twenty) == 20
    assert len({expected["loss"] for _, expected in twenty}) == 20
    for found, expected in twenty:
        assert_same(found, expected)
        for name in ("tokens", "receipt"):
            assert found[name] == expected[name], name
        assert found["micro_batches"] % 2 == 0


def test_a_step_without_images_and_one_of_too_few_samples_are_the_same_too(by_one, by_two):
    """Where there are too few micro-batches, a rank has one that counts in no loss."""
    for at in (22, 23):
        assert_same(by_two[1][at], by_one[1][at])
    assert by_one[1][23]["micro_batches"] < by_two[1][23]["micro_batches"]
    for name in ("loss", "tokens"):
        assert by_two[1][24][name] == pytest.approx(by_one[1][24][name], rel=LOSS)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_whatever_is_minimized_two_do_as_one(two, tiny_model, store, tmp_path, name):
    """Means over samples and by a constant, held to a reference; and a step of which nothing is left."""
    one = alone(tmp_path, tiny_model, store, MINIMIZED, objective=OBJECTIVES[name])
    _, found = two(name)
    for at in (0, 1, 2, 4):
        assert_same(found[at], one[at])
        for mean in ("truncated_fraction", "reference_kl", "mismatch_kl"):
            assert found[at][mean] == pytest.approx(one[at][mean], rel=1e-4, abs=1e-9), mean
    assert found[4]["reference_kl"] > 1e-6
    assert (found[3]["micro_batches"], found[3]["loss"], found[3]["entropy"]) == (0, 0, None)


def test_a_dressed_model_is_trained_by_two_as_by_one(two, tiny_model, store, tmp_path):
    """Adapters, a frozen tower and layers that are computed again; a checkpoint holds what is trained, and no more."""
    one = alone(tmp_path, tiny_model, store, DRESSED, dress=DRESS)
    place, found = two("dressed")
    for at in (0, 1, 2, 5, 7):
        assert_same(found[at], one[at])
    assert_same(found[7], found[5])
    before = load_model(tiny_model).state_dict()
    shapes = {name: tuple(value.shape) for name, value in before.items()}
    written = [read_weights(folder / "weights", 1, shapes) for folder in (tmp_path, place)]
    changed = {name for name, value in written[1].items() if not torch.equal(value, before[name])}
    assert changed
    assert not any("visual" in name for name in changed)
    for name, value in written[0].items():
        torch.testing.assert_close(written[1][name], value, rtol=0, atol=WEIGHTS, msg=name)
    files = (place / "checkpoints" / "step_000004").glob("*.safetensors")
    names = {name for file in files for name in safe_open(file, "pt").keys()}  # noqa: SIM118 not a dict
    kept = {name for name in names if name.startswith("model/")}
    assert kept
    assert all("lora_" in name for name in kept)


def test_tied_embeddings_stay_one_tensor(two, tied_model, store, tmp_path):
    """Of one gradient, written once."""
    one = alone(tmp_path, tied_model, store, TIED)
    place, found = two("tied")
    for at in (0, 1, 2, 6):
        assert_same(found[at], one[at])
    manifests = [json.loads((folder / "weights/step_1" / MANIFEST).read_text()) for folder in (tmp_path, place)]
    assert manifests[0]["tied"] == manifests[1]["tied"] != {}
    assert manifests[0]["tensors"] == manifests[1]["tensors"]


def test_weights_for_engines_are_the_same_in_as_many_files(by_one, by_two, tiny_model):
    model = load_model(tiny_model)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    one, two = (read_weights(place / "weights", 1, shapes) for place, _ in (by_one, by_two))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=WEIGHTS, msg=name)
    files = [
        sorted(path.name for path in version_folder(place / "weights", 1).iterdir()) for place, _ in (by_one, by_two)
    ]
    assert files[0] == files[1]
    assert {INDEX, MANIFEST} < set(files[0])
    assert len(files[0]) > 3


def test_transformers_loads_the_files(by_two, tiny_model, tmp_path):
    place = version_folder(by_two[0] / "weights", 1)
    folder = tmp_path / "model"
    shutil.copytree(place, folder)
    shutil.copy(tiny_model / "config.json", folder)
    loaded = load_model(folder).state_dict()
    written = read_weights(by_two[0] / "weights", 1, {name: tuple(value.shape) for name, value in loaded.items()})
    assert all(torch.equal(loaded[name], value) for name, value in written.items())


def test_an_error_on_one_rank_is_told_by_all_and_nothing_is_learnt(by_two):
    _, found = by_two
    lost, after, then = found[25:28]
    assert lost["error"] == "ImageNotFoundError"
    assert "rank 1: sample step_40/sample_" in lost["text"]
    assert not lost["out_of_step"]
    # Of the same weights as before, but for the step of one sample in between.
    assert after["loss"] == found[24]["loss"]
    assert then["loss"] > 0


def test_a_checkpoint_goes_on_as_if_nothing_had_been(by_two):
    """With as many ranks."""
    _, found = by_two
    assert found[28] == {"warmup": 1, "rl": 10, "skipped": 0}
    for again, first in zip(found[29:], found[11:14], strict=True):
        assert_same(again, first)


def test_two_go_on_from_the_checkpoint_of_one(by_one, two):
    _, found = two("gone on")
    assert found[0]["rl"] == 10
    for again, first in zip(found[1:], by_one[1][11:21], strict=True):
        assert_same(again, first)


def test_one_goes_on_from_the_checkpoint_of_two(by_one, by_two, tiny_model, store, tmp_path):
    """The same file holds no part of one rank alone."""
    shutil.copytree(by_two[0] / "checkpoints", tmp_path / "checkpoints")
    assert len(list((tmp_path / "checkpoints" / "step_000011").glob("*.safetensors"))) == 2
    found = alone(tmp_path, tiny_model, store, GO_ON)
    assert found[0]["rl"] == 10
    for again, first in zip(found[1:], by_one[1][11:21], strict=True):
        assert_same(again, first)


def ended(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def assert_all_ended(together, words):
    together.process.wait(PATIENCE)
    said = together.log.read_text()
    assert words in said.splitlines()[-1]
    assert together.process.returncode == 1
    assert all(map(ended, together.pids()))
    assert not (together.place / "finished").exists()


def test_a_rank_that_fails_where_others_wait_ends_them_all(tiny_model, store, tmp_path):
    together = Together(tmp_path, tiny_model, store, [["step", 0]], "fails")
    together.wait_for("pid_1")
    assert_all_ended(together, "rank 1 of 2 failed: ValueError: this layer cannot go on")


def test_a_rank_that_is_killed_where_others_wait_ends_them_all(tiny_model, store, tmp_path):
    together = Together(tmp_path, tiny_model, store, [["step", 0]], "waits")
    together.wait_for("waiting")
    os.kill(together.pids()[1], signal.SIGKILL)
    assert_all_ended(together, "rank 1 of 2 was ended by SIGKILL")


def test_no_rank_outlives_torchrun(tiny_model, store, tmp_path):
    together = Together(tmp_path, tiny_model, store, [["step", 0]], "waits")
    together.wait_for("waiting")
    together.process.kill()
    end = time.monotonic() + PATIENCE
    while not all(map(ended, together.pids())):
        assert time.monotonic() < end
        time.sleep(0.05)
