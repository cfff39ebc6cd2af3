"""The frozen policy: fed as the trained one is, kept as it was, and pulling only where the trained one has left it."""

from __future__ import annotations

import json
import shutil

import msgspec
import pytest
import torch

from filmroll.engine.weights import write_weights
from filmroll.errors import CheckpointError
from filmroll.families import load_family
from filmroll.materialize import Materializer
from filmroll.materialize.feed import load_model, vision_tower
from filmroll.store import open_store
from filmroll.train.batches.plan import plan
from filmroll.train.learning.objective import LossConfig, Trained
from filmroll.train.learning.reference import Reference
from filmroll.train.learning.trainer import Trainer
from filmroll.train.step import TrainerConfig, TrainStep
from filmroll.wire.training import LossWeights, MicroBatch
from tests.train.test_packed_step import made_samples

CONFIG = TrainerConfig(threads=1, max_grad_norm=1e9, max_tokens=160)
KL = LossWeights(kl=0.5)


def trainer_of(tiny_model, store, reference):
    return Trainer(tiny_model, Materializer(store, load_family(tiny_model)), CONFIG, reference=reference)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(tmp_path_factory.mktemp("images"))


@pytest.fixture
def trainer(tiny_model, store):
    """One that begins as its reference is."""
    return trainer_of(tiny_model, store, Reference(tiny_model))


@pytest.fixture(scope="module")
def held(tiny_model, store):
    """Samples with and without images, that count in nothing but the divergence."""
    return [msgspec.structs.replace(one, weights=KL) for one in made_samples(load_family(tiny_model), store)]


def disturb(trainer):
    torch.manual_seed(0)
    with torch.no_grad():
        for value in trainer.model.parameters():
            value.add_(torch.randn_like(value) * 0.02)


def step(trainer, samples, rate=0.0):
    return trainer.step(TrainStep(rate, 0, plan(samples, trainer.family, CONFIG).micro_batches))


def test_at_the_reference_there_is_nothing_to_gain(trainer, held):
    report = step(trainer, held)
    assert report.reference_kl == 0.0
    assert report.grad_norm < 1e-6
    assert report.loss == 0.0


def test_away_from_it_steps_lead_back(trainer, held):
    disturb(trainer)
    before = {name: value.clone() for name, value in trainer.reference.model.state_dict().items()}
    away = [step(trainer, held, 1e-3).reference_kl for _ in range(8)]
    assert away[0] > 1e-3
    assert away[-1] < away[0] / 2
    after = trainer.reference.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(value.requires_grad for value in trainer.reference.model.parameters())


def test_its_divergence_is_that_of_the_two_policies_logprobs(tiny_model, store, trainer, held):
    """Each sample alone, by a forward of either model that is nothing but transformers'."""
    disturb(trainer)
    text = next(one for one in held if not one.images)
    ids = torch.from_numpy(text.token_ids.astype("int64"))[None]
    unsampled = list(trainer.family.placeholders.unsampled)
    logprobs = []
    for model in (trainer.model, load_model(tiny_model)):
        with torch.no_grad():
            logits = model(input_ids=ids, mm_token_type_ids=torch.zeros_like(ids)).logits[0, :-1]
        logits[:, unsampled] = -1e9
        every = torch.log_softmax(logits / 0.8, -1)
        logprobs.append(every.gather(1, ids[0, 1:, None])[text.targets - 1, 0].double())
    policy, reference = logprobs
    wanted = (torch.exp(reference - policy) - (reference - policy) - 1).mean()
    report = step(trainer, [text])
    assert report.reference_kl == pytest.approx(float(wanted), rel=1e-4)
    assert report.loss == pytest.approx(0.5 * float(wanted), rel=1e-4)


def test_both_see_the_same_pictures_made_ready_once(trainer, held):
    seen = {}
    for name, model in (("policy", trainer.model), ("reference", trainer.reference.model)):

        def watch(_module, arguments, options, name=name):
            seen.setdefault(name, []).append((arguments or tuple(options.values()))[0])

        vision_tower(model).register_forward_pre_hook(watch, with_kwargs=True)
    report = step(trainer, held)
    assert len(seen["policy"]) == len(seen["reference"]) > 1
    assert all(map(torch.equal, seen["policy"], seen["reference"]))
    assert report.receipt.consumed == sum(len(one.images) for one in held), "what the reference sees is not counted"
    counts = trainer._loader._images.cache_counts()
    assert counts.misses == len({image.descriptor.identity for one in held for image in one.images})


def test_packing_changes_nothing(trainer, held):
    disturb(trainer)
    mixed = [
        msgspec.structs.replace(one, weights=LossWeights(rl=1.0, kl=0.5 * (number % 2)))
        for number, one in enumerate(held)
    ]
    trainer.objective = LossConfig(length="samples", kl=0.5)
    apart = trainer.step(TrainStep(0.0, 0, [MicroBatch([[one]]) for one in mixed]))
    expected = {name: value.grad.clone() for name, value in trainer.model.named_parameters()}
    together = step(trainer, mixed)
    assert together.micro_batches < apart.micro_batches
    assert together.reference_kl == pytest.approx(apart.reference_kl, rel=1e-5)
    assert together.loss == pytest.approx(apart.loss, rel=1e-5)
    for name, value in trainer.model.named_parameters():
        torch.testing.assert_close(value.grad, expected[name], rtol=1e-4, atol=1e-7, msg=name)


def test_it_is_loaded_when_it_is_needed_and_not_before(trainer, held):
    free = [msgspec.structs.replace(one, weights=LossWeights(rl=1.0)) for one in held]
    assert step(trainer, free).reference_kl is None
    assert "model" not in vars(trainer.reference)
    assert step(trainer, [*free, held[0]]).reference_kl == 0.0
    assert "model" in vars(trainer.reference)


def test_a_sample_without_weight_is_not_held(trainer, held):
    disturb(trainer)
    silent = [msgspec.structs.replace(one, weights=LossWeights()) for one in held[3:]]
    few, more = step(trainer, held[:3]), step(trainer, [*held[:3], *silent])
    assert more.reference_kl == pytest.approx(few.reference_kl, rel=1e-5)
    assert more.loss == pytest.approx(few.loss, rel=1e-5)
    assert more.trained_tokens == few.trained_tokens == Trained.of(held[:3]).tokens


def test_only_the_first_version_is_kept(tiny_model, store, trainer, tmp_path):
    kept, weights = tmp_path / "reference", tmp_path / "weights"
    reference = Reference(tiny_model, kept=kept)
    disturb(trainer)
    first = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for version in (0, 1):
        reference.keep(write_weights(trainer.model.state_dict(), weights, version).parent, version)
        shutil.rmtree(weights)
        disturb(trainer)
    loaded = Reference(tiny_model, kept=kept).model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in first.items())


def test_a_model_that_sees_otherwise_is_refused(tiny_model, tmp_path):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    settings = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.1, 0.2, 0.3]}))
    with pytest.raises(CheckpointError, match="sees other pictures or tokens"):
        Reference.named(other, load_family(tiny_model))
    assert Reference.named(tiny_model, load_family(tiny_model))
