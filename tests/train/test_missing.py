"""An image that cannot be had when it is to be trained on: an error, or a sample that weighs nothing and is counted."""

from __future__ import annotations

import gc
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filmroll.errors import GridError, ImageNotFoundError, MessageError, PlacementError, StoreError, TrainingError
from filmroll.families import load_family
from filmroll.materialize import Materializer
from filmroll.materialize.carried import Carried
from filmroll.train.batches.bins import Costs
from filmroll.train.batches.plan import deal, plan
from filmroll.train.learning.trainer import Trainer
from filmroll.train.loading.album import Album, stand_in
from filmroll.train.loading.loader import Loader
from filmroll.train.loading.processed import with_images
from filmroll.train.step import StepReport, TrainerConfig, TrainStep
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.receipt import Receipt
from filmroll.wire.training import LossWeights, MicroBatch, TrainingSample
from tests.train.album import CountingStore, counting_store, damage, file_of, fresh, gradients, lose, put, showing

CONFIG = TrainerConfig(threads=1, max_grad_norm=1e9)
SIDES = (64, 96, 128)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CountingStore:
    return counting_store(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def trainer(tiny_model: Path, store: CountingStore) -> Trainer:
    """May miss images of three quarters of its samples. With a learning rate of 0 it moves nowhere."""
    return Trainer(tiny_model, Materializer(store, load_family(tiny_model), cache_bytes=0), CONFIG, may_miss=0.75)


@pytest.fixture
def album(trainer: Trainer, store: CountingStore, request: pytest.FixtureRequest) -> list[ImageDescriptor]:
    """Each test has its own: what another test's error still holds would be found without a look."""
    first = zlib.crc32(request.node.name.encode())
    return [put(store, trainer.family, first + number, SIDES[number % 3]) for number in range(4)]


def four(trainer: Trainer, album: Sequence[ImageDescriptor]) -> list[TrainingSample]:
    """Four answers in each of four samples, so that what a step is divided by is a power of two."""
    shown = [[0, 1, 0, 1], [2, 1, 3, 0], [1, 0, 0, 1], [3, 0, 1, 1]]
    return [
        showing(trainer.family, f"rl_0/prompt_0/rollout_{n}/branch_0", [album[index] for index in each])
        for n, each in enumerate(shown)
    ]


def step(trainer: Trainer, batches: Sequence[MicroBatch]) -> StepReport:
    return trainer.step(TrainStep(0.0, 0, list(batches)))


def arranged(how: str, samples: Sequence[TrainingSample]) -> list[MicroBatch]:
    if how == "a micro-batch each":
        return [MicroBatch([[one]]) for one in samples]
    return [MicroBatch([list(samples)] if how == "one row" else [[one] for one in samples])]


@pytest.mark.parametrize("how", ["a micro-batch each", "a row each", "one row"])
@pytest.mark.parametrize("harm", [lose, damage])
def test_the_others_gradients_are_as_if_it_weighed_nothing(
    trainer: Trainer, album: list[ImageDescriptor], how: str, harm: Callable[[ImageDescriptor], None]
) -> None:
    """To the bit: its losses are 0, and what the step is divided by does not change.

    Image 3 is in samples 1 and 3. Without weight they count in no denominator: 8 answers of 4 tokens instead of 16.
    """
    samples = four(trainer, album)
    weightless = [*samples]
    for number in (1, 3):
        weightless[number] = msgspec.structs.replace(samples[number], weights=LossWeights())
    expected = step(trainer, arranged(how, weightless))
    wanted = gradients(trainer)
    harm(album[3])
    report = step(trainer, arranged(how, samples))
    assert all(torch.equal(2 * value, wanted[name]) for name, value in gradients(trainer).items())
    assert any(value.any() for value in wanted.values())
    assert 2 * report.loss == pytest.approx(expected.loss, rel=1e-6)
    for name in ("entropy", "ratio_mean", "ratio_max", "on_policy", "logprob_gap_max", "trained_tokens"):
        assert getattr(report, name) == pytest.approx(getattr(expected, name), rel=1e-6), name
    assert report.samples_masked == 2
    assert report.receipt == Receipt(16, 14, 14, 16, 2)


def test_it_counts_in_no_loss_whatever(trainer: Trainer, album: list[ImageDescriptor]) -> None:
    """None of its tokens reaches a loss: not the policy's, cross-entropy's, the reference's, nor a later one's."""
    every = LossWeights(**dict.fromkeys(LossWeights.__struct_fields__, 1.0))
    whole, gone = (showing(trainer.family, name, [one], every) for name, one in (("a", album[0]), ("b", album[1])))
    lose(album[1])
    loader = Loader(fresh(trainer._loader._images), trainer.model, CONFIG, may_miss=1.0)
    micro_batch = MicroBatch([[gone, whole], [gone]])
    loader.begin(TrainStep(0.0, 0, [micro_batch]), 3)
    batch = loader.load(micro_batch)
    assert batch.owners.tolist() == [1] * 4
    assert (batch.masked, len(batch.missing)) == (2, 2)


def test_by_default_it_ends_the_step(tiny_model: Path, trainer: Trainer, album: list[ImageDescriptor]) -> None:
    strict = Trainer(tiny_model, fresh(trainer._loader._images), CONFIG)
    lose(album[2])
    with pytest.raises(ImageNotFoundError, match="image 0: sample rl_0/prompt_0/rollout_1/branch_0, turn 0: "):
        step(strict, arranged("a row each", four(trainer, album)))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(0, 3)), st.sampled_from(["a micro-batch each", "a row each", "one row"]))
def test_law_counted(trainer: Trainer, album: list[ImageDescriptor], gone: set[int], how: str) -> None:
    """referenced = consumed = verified + missing, and every missing image is named with its place and the reason."""
    kept = {number: file_of(album[number]).read_bytes() for number in gone}
    samples = four(trainer, album)
    lost = {album[number].identity for number in gone}
    places = [
        (sample.name, turn, turn, image.descriptor.image.sha256)
        for sample in samples
        for turn, image in enumerate(sample.images)
        if image.descriptor.identity in lost
    ]
    masked = len({name for name, *_ in places})
    # What the error of another example still holds would be found without a look.
    gc.collect()
    for number in gone:
        lose(album[number])
    try:
        if masked > 3:
            with pytest.raises(TrainingError, match="of 4 samples of the step show images that cannot be had"):
                step(trainer, arranged(how, samples))
            return
        report = step(trainer, arranged(how, samples))
    finally:
        for number, data in kept.items():
            file_of(album[number]).write_bytes(data)
    assert report.receipt == Receipt(16, 16 - len(places), 16 - len(places), 16, len(places))
    assert report.samples_masked == masked
    assert [(one.sample, one.turn, one.image, one.sha256) for one in report.missing] == places
    assert all("no image" in one.reason for one in report.missing)


def test_above_the_share_the_step_is_not_taken(
    trainer: Trainer, tiny_model: Path, album: list[ImageDescriptor]
) -> None:
    samples = four(trainer, album)
    lose(album[3])
    for share, stops in ((0.25, True), (0.49, True), (0.5, False)):
        chosen = Trainer(tiny_model, fresh(trainer._loader._images), CONFIG, may_miss=share)
        before = {name: value.detach().clone() for name, value in chosen.model.named_parameters()}
        work = TrainStep(1e-3, 0, arranged("a micro-batch each", samples))
        if stops:
            with pytest.raises(
                TrainingError, match=f"of 4 samples .* share of {share:g} that may; one is image"
            ) as caught:
                chosen.step(work)
            assert "multimodal.missing_share" in str(caught.value)
            assert "sample rl_0/prompt_0/rollout_" in str(caught.value)
        else:
            chosen.step(work)
        moved = any(not torch.equal(value, before[name]) for name, value in chosen.model.named_parameters())
        assert moved != stops


def test_each_step_is_counted_by_itself_and_looks_again(trainer: Trainer, album: list[ImageDescriptor]) -> None:
    samples = four(trainer, album)
    kept = file_of(album[3]).read_bytes()
    lose(album[3])
    for _ in range(3):
        assert step(trainer, arranged("a row each", samples)).samples_masked == 2
    file_of(album[3]).write_bytes(kept)
    assert step(trainer, arranged("a row each", samples)).samples_masked == 0


def test_what_is_gone_is_looked_for_once_and_damage_stays_damage(
    trainer: Trainer, store: CountingStore, album: list[ImageDescriptor]
) -> None:
    """Reading a damaged image sets it aside; a second look would find nothing, and say so."""
    samples = [showing(trainer.family, f"s{number}", [album[number % 3]]) for number in range(9)]
    damage(album[1])
    store.reads.clear()
    report = step(trainer, [MicroBatch([[one]]) for one in samples])
    assert set(store.reads.values()) == {1}
    assert [one.sample for one in report.missing] == ["s1", "s4", "s7"]
    assert len({one.reason for one in report.missing}) == 1
    assert "set aside" in report.missing[0].reason


def test_what_stands_in_has_the_same_grid_and_is_in_no_cache(trainer: Trainer, store: CountingStore) -> None:
    cached = Materializer(store, trainer.family)
    for number, (width, height) in enumerate([(32, 32), (64, 96), (250, 90), (100, 700)]):
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        image = trainer.family.describe(store.put(noise))
        (real,) = fresh(cached).load([image]).pictures
        grey = stand_in(image, trainer.family)
        assert grey.features == real.features
        assert {name: (array.dtype, array.shape) for name, array in grey.arrays.items()} == {
            name: (array.dtype, array.shape) for name, array in real.arrays.items()
        }
        assert np.array_equal(grey.arrays["image_grid_thw"], real.arrays["image_grid_thw"])
        lose(image)
        album = Album(cached, 1.0)
        sample = showing(trainer.family, "s", [image])
        album.begin(1)
        developed = album.develop(MicroBatch([[sample]]))
        assert developed.pictures[0].identity != image.identity
        assert (cached.cache_counts().items, cached.cache_counts().nbytes) == (0, 0)


def test_a_reference_that_lies_is_an_error_all_the_same(trainer: Trainer, album: list[ImageDescriptor]) -> None:
    """It is not the image that is missing. Also where the image is: its stand-in would have the wrong shape."""
    image = album[0]
    layout = {"image_grid_thw": [[1, 2, 8]]}
    lies = [
        (msgspec.structs.replace(image, payload=layout), GridError),
        (msgspec.structs.replace(image, image=msgspec.structs.replace(image.image, width=65)), GridError),
        (msgspec.structs.replace(image, tokens=image.tokens + 1), PlacementError),
    ]
    for lie, kind in lies:
        with pytest.raises(kind, match="sample lies, turn 0: "):
            step(trainer, [MicroBatch([[showing(trainer.family, "lies", [lie])]])])
    lose(image)
    gone = fresh(trainer._loader._images)
    with pytest.raises(GridError, match="its payload is"):
        stand_in(lies[0][0], gone.family)


def test_a_dummy_is_no_sample_that_counts(trainer: Trainer, store: CountingStore) -> None:
    """It weighs nothing anyway: its image is missing, no sample is masked for it."""
    images = [put(store, trainer.family, number) for number in (90, 91)]
    samples = [showing(trainer.family, name, [one]) for name, one in zip(("a", "bb"), images, strict=True)]
    (_,), (dummy,) = deal(plan(samples[:1], trainer.family, CONFIG).micro_batches, Costs(trainer.family), 2)
    lose(images[0])
    report = step(trainer, [*arranged("a row each", samples[1:]), dummy])
    assert (report.samples_masked, report.receipt.missing) == (0, 1)
    assert report.missing[0].sample.startswith("dummy of a")


def test_the_trainer_without_a_store_learns_the_same(
    trainer: Trainer, tiny_model: Path, album: list[ImageDescriptor]
) -> None:
    """The orchestrator meets the missing image, and its reason travels in the arrays' place."""
    work = TrainStep(0.0, 0, arranged("a micro-batch each", four(trainer, album)))
    lose(album[3])
    with pytest.raises(ImageNotFoundError, match="image 2: sample rl_0/prompt_0/rollout_1/branch_0, turn 2: "):
        with_images(work, fresh(trainer._loader._images))
    sent = with_images(work, fresh(trainer._loader._images), may_miss=True)
    assert [one.identity for one in sent.lost] == [album[3].identity]
    assert [one.identity for one in sent.images] == [album[number].identity for number in (0, 1, 2)]

    expected = trainer.step(work)
    wanted = gradients(trainer)
    carrying = Trainer(tiny_model, Carried(trainer.family), CONFIG, may_miss=0.75)
    found = carrying.step(sent)
    assert all(torch.equal(value, wanted[name]) for name, value in gradients(carrying).items())
    assert (found.receipt, found.samples_masked) == (expected.receipt, expected.samples_masked)
    assert found.missing == expected.missing

    strict = Trainer(tiny_model, Carried(trainer.family), CONFIG)
    with pytest.raises(StoreError, match="image 2: sample rl_0/prompt_0/rollout_1/branch_0, turn 2: "):
        strict.step(sent)
    stranger = msgspec.structs.replace(sent.lost[0], sha256="0" * 64)
    with pytest.raises(MessageError, match="which none of its samples shows"):
        carrying.step(msgspec.structs.replace(sent, lost=[*sent.lost, stranger]))
    with pytest.raises(MessageError, match="A distinct image travels once"):
        carrying.step(msgspec.structs.replace(sent, lost=sent.lost * 2))
