"""Engine and trainer see the same: logprobs agree to float noise, and only for the right images."""

import asyncio
from pathlib import Path

import msgspec
import pytest
import torch

from filmroll.environments.color_codeword import ColorCodeword, ColorCodewordConfig
from filmroll.errors import FilmrollError, ReceiptError, TrainingError
from filmroll.materialize import Materializer
from filmroll.materialize.feed import load_model, vision_tower
from filmroll.render import load_renderer
from filmroll.rollout import EngineClient
from filmroll.rollout.worker import RolloutTask, Worker
from filmroll.store import open_store
from filmroll.train.batches.plan import plan
from filmroll.train.batches.samples import samples
from filmroll.train.learning.forward import forward
from filmroll.train.learning.trainer import Trainer
from filmroll.train.loading.loader import Loader
from filmroll.train.step import TrainerConfig, TrainStep
from filmroll.wire.generate import SamplingParams
from filmroll.wire.training import LossWeights, MicroBatch

SAMPLES = 200


@pytest.fixture(scope="module")
def played(tiny_model, served):
    """Rollouts at two temperatures, half of them with the filters on."""
    renderer = load_renderer(tiny_model, open_store(served.store))
    settings = [SamplingParams(max_tokens=5), SamplingParams(max_tokens=5, temperature=0.7, top_p=0.9, top_k=50)]

    async def together():
        client = EngineClient(served.url, "tiny")
        worker = Worker(ColorCodeword(ColorCodewordConfig()), renderer, client)
        tasks = [RolloutTask(f"r{number}", number // 4, settings[number % 2]) for number in range(SAMPLES)]
        try:
            return await asyncio.gather(*map(worker.rollout, tasks))
        finally:
            await client.close()

    done = asyncio.run(together())
    return [
        s for one in done for s in samples(one.trajectory, renderer.family, advantage=1.0, weights=LossWeights(rl=1.0))
    ]


@pytest.fixture(scope="module")
def seeing(tiny_model, served, played):
    renderer = load_renderer(tiny_model, open_store(served.store))
    return Materializer(renderer.store, renderer.family), load_model(tiny_model)


def gaps(seeing, chosen):
    materializer, model = seeing
    found = []
    with torch.no_grad():
        for batch in plan(chosen, materializer.family, TrainerConfig()).micro_batches:
            loaded = Loader(materializer, model).load(batch)
            found.append((forward(model, materializer.family, loaded).logprobs - loaded.logprobs).abs())
    return torch.cat(found)


def test_engine_and_trainer_agree(seeing, played):
    assert len(played) == SAMPLES
    found = gaps(seeing, played)
    assert len(found) > 3 * SAMPLES
    assert found.max() < 1e-4


def test_swapped_images_are_noticed(seeing, played):
    """The canary: two images of a sample change places, sizes and tokens stay as they are."""
    sample = next(one for one in played if len({image.descriptor.identity for image in one.images}) > 1)
    first = sample.images[0]
    other = next(image for image in sample.images if image.descriptor.identity != first.descriptor.identity)
    trade = {first.descriptor.identity: other.descriptor, other.descriptor.identity: first.descriptor}
    swapped = msgspec.structs.replace(
        sample,
        images=[
            msgspec.structs.replace(image, descriptor=trade.get(image.descriptor.identity, image.descriptor))
            for image in sample.images
        ],
    )
    assert gaps(seeing, [swapped]).max() > 100 * gaps(seeing, [sample]).max()


def test_packing_changes_nothing(seeing, played):
    alone = torch.cat([gaps(seeing, [one]) for one in sorted(played[:6], key=lambda one: -one.tokens)])
    assert (alone - gaps(seeing, played[:6])).abs().max() < 1e-5


@pytest.fixture
def trainer(seeing, tiny_model):
    return Trainer(tiny_model, seeing[0], TrainerConfig(threads=1))


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def test_a_step_moves_towards_what_was_rewarded(trainer, played):
    work = TrainStep(1e-3, 0, [MicroBatch([played[:8]])])
    reports = [trainer.step(work) for _ in range(3)]
    assert reports[-1].ratio_mean > reports[0].ratio_mean
    assert reports[0].logprob_gap_max < 1e-4
    assert reports[0].on_policy == 1.0
    assert reports[0].receipt.consumed == sum(len(one.images) for one in played[:8])


def test_law_counted(trainer, played):
    """A model that drops an image fails the step, and the weights stay as they were."""
    before = weights(trainer)
    tower = vision_tower(trainer.model)
    real = tower.forward
    tower.forward = lambda hidden, grid_thw, **options: real(hidden[:-4], grid_thw, **options)
    with pytest.raises((ReceiptError, RuntimeError)):
        trainer.step(TrainStep(1e-3, 0, [MicroBatch([played[:1]])]))
    tower.forward = real
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())


def forged(sample, **changes):
    image = sample.images[0]
    descriptor = msgspec.structs.replace(image.descriptor, **changes)
    return msgspec.structs.replace(
        sample, images=[msgspec.structs.replace(image, descriptor=descriptor), *sample.images[1:]]
    )


@pytest.mark.parametrize(
    "break_it",
    [
        lambda one: forged(one, payload={"image_grid_thw": [[1, 2, 18]]}),
        lambda one: forged(one, recipe="0" * 32),
        lambda one: forged(one, family="other"),
        lambda one: msgspec.structs.replace(one, images=one.images[1:]),
        lambda one: msgspec.structs.replace(one, images=[]),
        lambda one: forged(
            one, image=msgspec.structs.replace(one.images[0].descriptor.image, uri="file:///etc/passwd.png")
        ),
    ],
)
def test_a_sample_that_lies_stops_the_step_before_the_update(trainer, played, break_it):
    before = weights(trainer)
    with pytest.raises(FilmrollError):
        trainer.step(TrainStep(1e-3, 0, [MicroBatch([[break_it(played[0])]]), MicroBatch([played[1:3]])]))
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())


def test_an_image_that_is_gone_stops_the_step_by_name(tiny_model, seeing, played, tmp_path: Path):
    gone = Materializer(open_store(tmp_path / "empty"), seeing[0].family)
    with pytest.raises(FilmrollError, match=rf"image 0: sample {played[0].name}, turn 0: "):
        Loader(gone, seeing[1]).load(MicroBatch([played[:1]]))


def test_a_receipt_that_differs_names_what_the_step_was_about(trainer, played):
    """A model that is never shown its images: the step stops, and says which ones."""
    trainer.model.model.forward = blind(trainer.model.model.forward)
    with pytest.raises(ReceiptError, match="0 consumed by the model") as caught:
        trainer.step(TrainStep(1e-3, 0, [MicroBatch([played[:1]])]))
    assert f"one of {len(played[0].images)} images (sample {played[0].name}, turn 0, image 0; " in str(caught.value)


def blind(forward):
    def without_pictures(**inputs):
        seen = {name: value for name, value in inputs.items() if name not in ("pixel_values", "image_grid_thw")}
        return forward(**seen)

    return without_pictures


def test_a_step_without_trained_tokens_is_refused(trainer, played):
    idle = msgspec.structs.replace(played[0], trained=played[0].trained * 0)
    with pytest.raises(TrainingError, match="no trained tokens"):
        trainer.step(TrainStep(1e-3, 0, [MicroBatch([[idle]])]))


def test_a_gradient_that_is_not_finite_leaves_the_weights(trainer, played):
    before = weights(trainer)
    broken = msgspec.structs.replace(played[0], advantage=float("inf"))
    with pytest.raises(TrainingError, match="gradient norm"):
        trainer.step(TrainStep(1e-3, 0, [MicroBatch([[broken]])]))
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
