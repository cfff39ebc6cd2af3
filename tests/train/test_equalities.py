"""What must make no difference makes none, on each device and in each kind of number, to written tolerances.

Packed rows, pictures seen once, the engine beside the trainer, two processes, a new life from a checkpoint. In each of
the first three a small mistake has to come out far beyond the tolerance, so that the tolerance says something; what
mistakes do to twenty steps is written in `arithmetic.py`.
"""

import dataclasses
import shutil

import msgspec
import numpy as np
import pytest
import torch

from filmroll.engine.weights import read_weights
from filmroll.families import load_family
from filmroll.materialize import Materializer
from filmroll.materialize.feed import load_model
from filmroll.store import open_store
from filmroll.train.batches.plan import plan
from filmroll.train.learning.forward import forward
from filmroll.train.learning.objective import LossConfig, Trained
from filmroll.train.learning.trainer import Trainer
from tests.train.arithmetic import EVERY_ARITHMETIC, farther, gradients_apart, rms
from tests.train.every_case import CASES, SHOWN, Ground, gradients
from tests.train.test_every_family import ANSWER, answered
from tests.train.test_packed_step import UNCLIPPED, alone, done, made_samples
from tests.train.test_ranks import FIRST, LAST, Together
from tests.train.test_ranks import alone as by_one_rank


@pytest.fixture(scope="module", params=EVERY_ARITHMETIC, ids=str)
def arithmetic(request):
    torch.set_num_threads(1)
    return request.param


@pytest.fixture
def near(record_property):
    """Says that something is no farther apart than it may be; `make test-gpu` ends with how far that was."""

    def say(what, apart, most):
        record_property(what, f"{apart:.1e} of {most:g}")
        assert apart <= most, what

    return say


def with_another_picture(sample, family, store):
    """The mistake: a sample's first image is one of the same size that it was not."""
    first, *others = sample.images
    height, width = first.descriptor.image.height, first.descriptor.image.width
    noise = np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8)
    wrong = msgspec.structs.replace(first, descriptor=family.describe(store.put(noise)))
    return msgspec.structs.replace(sample, images=[wrong, *others])


# Packed = unpacked

OBJECTIVES = {
    "token": LossConfig(clip_low=0.24, clip_high=0.28),
    "sequence": LossConfig(length="samples", ratio="sequence"),
    "truncated": LossConfig(length="constant", constant=3, truncate_at=1.25),
}
"""With bounds that no token of these samples is within 0.01 of: none is clipped by rounding."""
MEANS = ("loss", "entropy", "ratio_mean", "mismatch_kl")
LARGEST = ("ratio_max", "logprob_gap_max")
COUNTED = ("clip_fraction", "truncated_fraction", "trained_tokens", "receipt")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_packed_is_unpacked(arithmetic, near, objective, tiny_model, tmp_path):
    """The loss, what is told and the gradients of a step: a row for each sample, and as the plan packs them."""
    family, store, tolerance = load_family(tiny_model), open_store(tmp_path), arithmetic.tolerance
    config = arithmetic.config(UNCLIPPED)
    trainer = Trainer(tiny_model, Materializer(store, family), config, OBJECTIVES[objective])
    samples = made_samples(family, store)
    whole = Trained.of(samples)
    unpacked, expected = done(trainer, alone(samples), whole)
    batches = plan(samples, family, config).micro_batches
    assert 1 < len(batches) < len(samples)
    packed, found = done(trainer, batches, whole)
    for what, names, most in (("told", MEANS, tolerance.told), ("largest", LARGEST, tolerance.token)):
        near(what, max(abs(getattr(packed, name) - getattr(unpacked, name)) for name in names), most)
    assert [getattr(packed, name) for name in COUNTED] == [getattr(unpacked, name) for name in COUNTED]
    near("gradients", gradients_apart(trainer.model, found, expected), tolerance.gradients)

    wrong = [with_another_picture(samples[0], family, store), *samples[1:]]
    _, found = done(trainer, plan(wrong, family, config).micro_batches, whole)
    assert gradients_apart(trainer.model, found, expected) > 2 * tolerance.gradients


# Deduplicated = plain, and the engine = the trainer


@pytest.fixture(scope="module", params=sorted(CASES))
def case(arithmetic, request, tmp_path_factory):
    ground = Ground.of(request.param, tmp_path_factory.mktemp("case"))
    return ground, load_model(ground.folder, device=arithmetic.device)


def mistaken(ground):
    """The same samples with another picture in one place."""
    first, *others = ground.samples
    return dataclasses.replace(ground, samples=[with_another_picture(first, ground.family, ground.store), *others])


def passed(ground, model, dtype, at_once=1000):
    """Logprobs and gradients of a forward and backward pass over the samples."""
    out = forward(model, ground.family, ground.batch(model), dtype=dtype, at_once=at_once)
    assert out.receipt.consumed == sum(map(len, SHOWN))
    out.logprobs.mean().backward()
    return out.logprobs.detach(), gradients(model)


def test_deduplicated_is_plain(case, arithmetic, near, monkeypatch):
    """A pass of the tower for each distinct picture, and one for each place that shows it; in every model type.

    Beside that the first has the logits of five tokens at once, the second those of all.
    """
    ground, model = case
    tolerance, dtype = arithmetic.tolerance, arithmetic.dtype
    logprobs, once = passed(ground, model, dtype, at_once=5)
    with monkeypatch.context() as patch:
        patch.setattr(ground.family, "forward", dataclasses.replace(ground.family.forward, shares=False))
        expected, plain = passed(ground, model, dtype)
    near("logprobs", rms(logprobs, expected), tolerance.logprobs)
    near("gradients", gradients_apart(model, once, plain), tolerance.gradients)
    assert gradients_apart(model, passed(mistaken(ground), model, dtype)[1], plain) > 2 * tolerance.gradients


BLURRED = {"gemma4": 4.0, "gemma4_unified": 4.0}
"""Of these a tiny random engine in bfloat16 is so many times farther from the trainer: of the first, as far as another
picture would have it."""


@torch.no_grad()
def test_the_engine_is_the_trainer(case, arithmetic, near):
    """Prefill and decoding with weights of the arithmetic's kind, and the trainer's forward with weights of float32."""
    ground, model = case
    engines = load_model(ground.folder, dtype=arithmetic.dtype, device=arithmetic.device)
    said = dataclasses.replace(ground, samples=answered(ground, engines))

    def apart(ground):
        batch = ground.batch(model)
        logprobs = forward(model, ground.family, batch, dtype=arithmetic.dtype).logprobs
        return rms(logprobs, batch.logprobs), rms(logprobs[:ANSWER], batch.logprobs[:ANSWER])

    whole, of_the_first = apart(said)
    blurred = BLURRED.get(model.config.model_type, 1.0) if arithmetic.dtype == "bfloat16" else 1.0
    near("logprobs", whole, blurred * arithmetic.tolerance.engine)
    _, wrong = apart(mistaken(said))
    assert wrong > 3 / blurred * of_the_first


# Two ranks = one, and resumed = uninterrupted

TWENTY = [*FIRST, ["save", 10], *LAST, ["publish", 1]]
REST = [["restore", 0], *LAST, ["publish", 1]]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def by_one(arithmetic, tiny_model, store, tmp_path_factory):
    """Twenty steps of one process, with a checkpoint in their middle."""
    place = tmp_path_factory.mktemp("one")
    return place, by_one_rank(place, tiny_model, store, TWENTY, dress=arithmetic.dress)


def steps(answers):
    """The reports of steps, without what a clock said."""
    timed = ("seconds", "image_wait")
    return [{name: one[name] for name in one if name not in timed} for one in answers if one and "loss" in one]


def same_course(near, tolerance, model, found, expected):
    """Every step's loss and norm, what all steps saw, and the weights in the end."""
    taken = steps(found[1])
    pairs = list(zip(taken, steps(expected[1])[-len(taken) :], strict=True))
    for name in ("trained_tokens", "tokens", "receipt"):
        assert all(one[name] == other[name] for one, other in pairs), name
    for name, most in (("loss", tolerance.loss), ("grad_norm", tolerance.norm)):
        near(name, max(abs(one[name] / other[name] - 1) for one, other in pairs), most)
    before = load_model(model).state_dict()
    shapes = {name: tuple(value.shape) for name, value in before.items()}
    moved, expected_move = (
        {name: value - before[name] for name, value in read_weights(place / "weights", 1, shapes).items()}
        for place, _ in (found, expected)
    )
    near("weights", farther(moved, expected_move), tolerance.weights)


def test_two_ranks_are_one(arithmetic, near, by_one, tiny_model, store, tmp_path):
    """Two with the logits of five tokens at once, one with all."""
    if arithmetic.device != "cpu" and torch.cuda.device_count() < 2:
        pytest.skip("nccl puts no two ranks on one GPU, and this machine has one")
    together = Together(tmp_path, tiny_model, store, TWENTY, dress=arithmetic.dress | {"logits_at_once": 5})
    found = together.answers()
    assert len(steps(found)) == 20
    same_course(near, arithmetic.tolerance, tiny_model, (tmp_path, found), by_one)


def test_resumed_is_uninterrupted(arithmetic, near, by_one, tiny_model, store, tmp_path):
    """A new trainer from the checkpoint: to the last bit where a step has the same bits twice."""
    shutil.copytree(by_one[0] / "checkpoints", tmp_path / "checkpoints")
    found = by_one_rank(tmp_path, tiny_model, store, REST, dress=arithmetic.dress)
    assert len(steps(found)) == 10
    same_course(near, arithmetic.tolerance, tiny_model, (tmp_path, found), by_one)
    if arithmetic.exact:
        assert steps(found) == steps(by_one[1])[10:]
        files = sorted((tmp_path / "weights" / "step_1").glob("*.safetensors"))
        assert files
        assert all(path.read_bytes() == (by_one[0] / "weights" / "step_1" / path.name).read_bytes() for path in files)
