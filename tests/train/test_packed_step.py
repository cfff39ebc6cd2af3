"""What packing, dummies and ranks change in a step: nothing but the time it takes."""

import msgspec
import numpy as np
import pytest
import torch

from filmroll.errors import TrainingError
from filmroll.families import load_family
from filmroll.materialize import Materializer
from filmroll.store import open_store
from filmroll.train.batches.bins import Costs
from filmroll.train.batches.overlong import beginning
from filmroll.train.batches.plan import deal, plan
from filmroll.train.learning.forward import forward
from filmroll.train.learning.loss import loss
from filmroll.train.learning.objective import LossConfig, Trained
from filmroll.train.learning.trainer import Trainer
from filmroll.train.loading.loader import Loader
from filmroll.train.step import TrainerConfig, TrainStep
from filmroll.wire.training import LossWeights, MicroBatch, PlacedImage, TrainingSample

UNCLIPPED = TrainerConfig(threads=1, max_grad_norm=1e9, max_tokens=160)
"""With a learning rate of 0, a step leaves its gradients and moves nothing."""


@pytest.fixture(scope="module")
def trainer(tiny_model, tmp_path_factory):
    store = open_store(tmp_path_factory.mktemp("images"))
    return Trainer(tiny_model, Materializer(store, load_family(tiny_model)), UNCLIPPED)


@pytest.fixture(scope="module")
def samples(trainer):
    return made_samples(trainer.family, trainer._loader._images.store)


def made_samples(family, store) -> list[TrainingSample]:
    """Twelve of many lengths, both loss streams and both signs of advantage; three have no image."""
    noise = np.random.default_rng(0)
    album = [
        family.describe(store.put(noise.integers(0, 256, (*size, 3), np.uint8)))
        for size in [(32, 32), (64, 96), (96, 32)]
    ]
    return [_sample(family, noise, number, [album[one] for one in shown]) for number, shown in enumerate(SHOWN)]


SHOWN = [(0,), (0, 1), (), (2,), (1, 1), (0,), (0, 1), (), (2, 0), (1,), (), (2,)]


def _sample(family, noise, number, shown) -> TrainingSample:
    ids, images = list(noise.integers(0, 200, 3 + number)), []
    for descriptor in shown:
        images.append(PlacedImage(descriptor, len(ids)))
        ids += [*family.expansion(descriptor), *noise.integers(0, 200, 4 + number)]
    token_ids = np.array(ids, np.int32)
    return TrainingSample(
        name=f"s{number}",
        token_ids=token_ids,
        trained=((token_ids != family.placeholders.image) & (noise.random(len(ids)) < 0.5)).astype(np.uint8),
        logprobs=noise.normal(-6, 0.3, len(ids)).astype(np.float32),
        temperatures=np.full(len(ids), 0.8, np.float32),
        versions=np.zeros(len(ids), np.int32),
        advantage=1.0 - number % 3,
        weights=LossWeights(rl=1.0, cross_entropy=0.25 * (number % 2)),
        images=images,
    )


def done(trainer, batches, whole):
    """The report of a step or of a rank's part of it, and its gradients times the whole step's tokens."""
    report = trainer.step(TrainStep(0.0, 0, batches), whole)
    return report, {name: value.grad * whole.tokens for name, value in trainer.model.named_parameters()}


OBJECTIVES = [
    LossConfig(),
    LossConfig(length="samples", ratio="sequence"),
    LossConfig(length="constant", constant=3, truncate_at=1.2),
]


@pytest.fixture(params=OBJECTIVES, ids=lambda one: one.length)
def objective(request, trainer):
    """Each way of dividing by lengths, in turn."""
    trainer.objective = request.param
    yield request.param
    trainer.objective = LossConfig()


@pytest.fixture(scope="module")
def whole(samples):
    return Trained.of(samples)


TOLD = (
    "loss", "entropy", "ratio_mean", "ratio_max", "clip_fraction", "truncated_fraction", "logprob_gap_max",
    "mismatch_kl",
)  # fmt: skip


def alone(samples):
    return [MicroBatch([[one]]) for one in samples]


def assert_same(gradients, expected):
    for name, value in gradients.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_packed_step_is_the_same_step(trainer, samples, whole, objective):
    """However its samples are divided into micro-batches."""
    apart, expected = done(trainer, alone(samples), whole)
    packed = plan(samples, trainer.family, UNCLIPPED).micro_batches
    assert any(len(row) > 1 for batch in packed for row in batch.rows)
    assert 1 < len(packed) < len(samples)
    for batches in (packed, [MicroBatch([list(samples)])], [MicroBatch([[one] for one in samples])]):
        together, gradients = done(trainer, batches, whole)
        for name in TOLD:
            assert getattr(together, name) == pytest.approx(getattr(apart, name), abs=1e-5), name
        assert together.trained_tokens == apart.trained_tokens
        assert together.receipt == apart.receipt
        assert_same(gradients, expected)


@pytest.mark.parametrize("ranks", [2, 5, 16])
def test_the_ranks_gradients_add_up_to_the_whole_steps(trainer, samples, whole, objective, ranks):
    _, expected = done(trainer, alone(samples), whole)
    total = dict.fromkeys(expected, 0.0)
    for batches in deal(plan(samples, trainer.family, UNCLIPPED).micro_batches, Costs(trainer.family), ranks):
        if any(one.trained.any() for batch in batches for one in batch.samples):
            _, part = done(trainer, batches, whole)
            total = {name: total[name] + part[name] for name in total}
    assert_same(total, expected)


@pytest.mark.parametrize("sees", [True, False])
def test_a_dummy_contributes_exactly_nothing(trainer, samples, whole, objective, sees):
    chosen = [one for one in samples if bool(one.images) == sees][:1]
    (_,), (dummy,) = deal(plan(chosen, trainer.family, UNCLIPPED).micro_batches, Costs(trainer.family), 2)
    assert any(one.images for one in dummy.samples) == sees
    before, expected = done(trainer, alone(samples), whole)
    after, gradients = done(trainer, [*alone(samples), dummy], Trained.of([*samples, *dummy.samples]))
    assert all(torch.equal(gradients[name], value) for name, value in expected.items())
    same = ("loss", "grad_norm", "entropy", "ratio_mean", "ratio_max", "clip_fraction", "on_policy", "trained_tokens")
    assert [getattr(after, name) for name in same] == [getattr(before, name) for name in same]
    assert after.receipt.consumed == before.receipt.consumed + sees


def test_a_dummys_backward_reaches_every_parameter(trainer, samples):
    """Ranks that share a model reduce gradients together: each needs one for all that the others have, if only zero."""
    (_,), (dummy,) = deal(plan(samples[:1], trainer.family, UNCLIPPED).micro_batches, Costs(trainer.family), 2)
    for parameter in trainer.model.parameters():
        parameter.grad = None
    batch = Loader(trainer._loader._images, trainer.model).load(dummy)
    lost = loss(forward(trainer.model, trainer.family, batch).logprobs, batch, Trained.of(samples), LossConfig())
    lost.total.backward()
    assert lost.total.item() == 0.0
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_a_report_tells_padding_and_patches(trainer, samples):
    one, other = samples[1], msgspec.structs.replace(samples[6], name="again")
    report = trainer.step(TrainStep(0.0, 0, [MicroBatch([[one], [other]])]))
    assert report.tokens == one.tokens + other.tokens
    assert report.area == 2 * max(one.tokens, other.tokens)
    assert report.patches == 4 + 24, "32x32 and 64x96 pixels in patches of 16x16, each image once"


@pytest.mark.parametrize("rows", [[], [[]], [["nothing"]]], ids=["no rows", "an empty row", "an empty sample"])
def test_a_micro_batch_without_tokens_is_refused(trainer, samples, rows):
    nothing = beginning(samples[2], 0)
    batch = MicroBatch([[nothing for _ in row] for row in rows])
    with pytest.raises(TrainingError, match="empty"):
        trainer.step(TrainStep(0.0, 0, [MicroBatch([[samples[0]]]), batch]))
