"""Mode processed: a step brings its images along, and a trainer that has no store learns the very same from it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from filmroll.environments.color_codeword import ColorCodeword, ColorCodewordConfig
from filmroll.errors import FilmrollError, FingerprintError, GridError, ImageNotFoundError, MessageError
from filmroll.materialize import Materializer
from filmroll.materialize.carried import Carried
from filmroll.render import load_renderer
from filmroll.rollout.worker import RolloutTask, Worker
from filmroll.store import open_store
from filmroll.train.batches.plan import plan
from filmroll.train.batches.samples import samples
from filmroll.train.learning.trainer import Trainer
from filmroll.train.loading.processed import with_images
from filmroll.train.step import TrainerConfig, TrainStep
from filmroll.wire.generate import SamplingParams
from filmroll.wire.processed import ProcessedImage
from filmroll.wire.receipt import Receipt
from filmroll.wire.training import LossWeights
from filmroll.wire.transport import Codec

CONFIG = TrainerConfig(threads=1, max_tokens=512)
PROCESSED, RAW = Codec(TrainStep, tensors=True), Codec(TrainStep)


@dataclass
class Played:
    raw: TrainStep
    processed: TrainStep
    materializer: Materializer


@pytest.fixture(scope="module")
def played(tiny_model, tmp_path_factory):
    """Three demonstrations, each twice as rollouts of a group are, in several micro-batches; both loss streams."""
    store = open_store(tmp_path_factory.mktemp("images"))
    renderer = load_renderer(tiny_model, store)
    worker = Worker(ColorCodeword(ColorCodewordConfig(size=40)), renderer, client=None)

    async def shown():
        tasks = [RolloutTask(f"s{number}", number // 2, SamplingParams()) for number in range(6)]
        return [await worker.demonstrate(task) for task in tasks]

    weights = LossWeights(rl=1.0, cross_entropy=0.5)
    made = [
        sample
        for one in asyncio.run(shown())
        for sample in samples(one.trajectory, renderer.family, advantage=1.0, weights=weights)
    ]
    materializer = Materializer(store, renderer.family)
    raw = TrainStep(1e-3, 0, plan(made, renderer.family, CONFIG).micro_batches)
    assert len(raw.micro_batches) > 1
    return Played(raw, with_images(raw, materializer), materializer)


def through(work, codec=PROCESSED):
    """The step as a trainer gets it."""
    data = b"".join(bytes(part) for part in codec.encode(0, work))
    return codec.decode(codec.split(memoryview(data)))[1]


def places(work):
    return [image for batch in work.micro_batches for image in batch.images]


@pytest.fixture(scope="module")
def learner(tiny_model, played):
    return Trainer(tiny_model, Carried(played.materializer.family), CONFIG)


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def test_a_trainer_without_a_store_learns_the_very_same(tiny_model, played):
    seeing = Trainer(tiny_model, played.materializer, CONFIG)
    carrying = Trainer(tiny_model, Carried(played.materializer.family), CONFIG)
    for _ in range(2):
        expected, found = seeing.step(played.raw), carrying.step(through(played.processed))
        timeless = [msgspec.structs.replace(one, seconds=0, image_wait=0) for one in (found, expected)]
        assert timeless[0] == timeless[1]
        assert found.receipt == Receipt(*[len(places(played.raw))] * 4)
    left = weights(seeing)
    assert all(torch.equal(value, left[name]) for name, value in weights(carrying).items())


def test_a_distinct_image_travels_once_as_levels(played):
    shown = {image.descriptor.identity for image in places(played.raw)}
    assert [image.identity for image in played.processed.images] == list(dict.fromkeys(
        image.descriptor.identity for image in places(played.raw)
    ))  # fmt: skip
    assert len(places(played.raw)) >= 2 * len(shown)
    for image in played.processed.images:
        (levels,) = [array for array in image.arrays.values() if array.dtype == np.uint8]
        # Qwen3-VL's processor makes two temporal copies of float32.
        assert levels.shape[1] == 3 * 16 * 16
    fresh = Materializer(played.materializer.store, played.materializer.family)
    with_images(played.raw, fresh)
    assert (fresh.cache_counts().hits, fresh.cache_counts().misses) == (0, len(shown))
    arrays = sum(array.nbytes for image in played.processed.images for array in image.arrays.values())
    assert weight(PROCESSED, played.processed) < weight(RAW, played.raw) + arrays + 512 * len(shown)


def weight(codec, work):
    return sum(part.nbytes for part in codec.encode(0, work))


def changed(work, number, **changes):
    """The step with one of its images other than it was, under a checksum that is right."""
    images = list(work.images)
    was = images[number]
    arrays = {name: value for name, value in (was.arrays | changes).items() if value is not None}
    images[number] = ProcessedImage.of(was.identity, arrays)
    return msgspec.structs.replace(work, images=images)


def traded(work):
    """Two images of one size change places, each with the checksum that it came with."""
    one, other = work.images[:2]
    trade = [
        msgspec.structs.replace(one, arrays=other.arrays),
        msgspec.structs.replace(other, arrays=one.arrays),
    ]
    return msgspec.structs.replace(work, images=[*trade, *work.images[2:]])


def levels(work, number):
    return work.images[number].arrays["pixel_values"]


BROKEN = {
    "missing": (lambda work: msgspec.structs.replace(work, images=work.images[:1]), 1, MessageError, "did not come"),
    "none": (lambda work: msgspec.structs.replace(work, images=[]), 0, MessageError, "did not come"),
    "traded": (traded, 0, MessageError, "checksum differs"),
    "floats": (
        lambda work: changed(work, 1, pixel_values=levels(work, 1).astype(np.float32)),
        1,
        MessageError,
        "pixel_values are float32",
    ),
    "short": (lambda work: changed(work, 1, pixel_values=levels(work, 1)[:-4]), 1, MessageError, "of shape"),
    "copies": (
        lambda work: changed(work, 1, pixel_values=np.repeat(levels(work, 1), 2, axis=1)),
        1,
        MessageError,
        "of shape",
    ),
    "flat": (lambda work: changed(work, 1, pixel_values=levels(work, 1).reshape(-1)), 1, MessageError, "of shape"),
    "grid": (
        lambda work: changed(work, 1, image_grid_thw=work.images[1].arrays["image_grid_thw"][:, [0, 2, 1]] * 2),
        1,
        GridError,
        "image_grid_thw are .* those of a picture of its size are",
    ),
    "a name too many": (
        lambda work: changed(work, 1, more=np.zeros((1, 1), np.uint8)),
        1,
        MessageError,
        "arrays are image_grid_thw, more, pixel_values",
    ),
    "a name too few": (lambda work: changed(work, 1, image_grid_thw=None), 1, MessageError, "arrays are pixel_values"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_wrong_arrays_are_named_and_stop_the_step_before_the_update(learner, played, broken):
    """By sample, branch, turn and image: the first place where the image is shown."""
    break_it, number, kind, complaint = BROKEN[broken]
    identity = played.processed.images[number].identity
    batch = next(
        one for one in played.raw.micro_batches if identity in {image.descriptor.identity for image in one.images}
    )
    sample = next(one for one in batch.samples if identity in {image.descriptor.identity for image in one.images})
    index = next(index for index, image in enumerate(sample.images) if image.descriptor.identity == identity)
    before = weights(learner)
    with pytest.raises(kind, match=complaint) as caught:
        learner.step(through(break_it(played.processed)))
    assert f"image {index}: sample {sample.name}, turn " in str(caught.value)
    assert "/branch_0, turn " in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in weights(learner).items())


def test_what_no_sample_shows_is_refused(learner, played):
    stranger = ProcessedImage.of(("0" * 64, played.processed.images[0].recipe), played.processed.images[0].arrays)
    with pytest.raises(MessageError, match="0000000000000000, which none of its samples shows"):
        learner.step(msgspec.structs.replace(played.processed, images=[*played.processed.images, stranger]))
    with pytest.raises(MessageError, match="A distinct image travels once"):
        learner.step(msgspec.structs.replace(played.processed, images=[*played.processed.images] * 2))


def test_a_descriptor_is_believed_no_more_than_in_a_raw_run(learner, played):
    def forged(**changes):
        first = played.processed.micro_batches[0]
        sample = first.rows[0][0]
        image = sample.images[0]
        descriptor = msgspec.structs.replace(image.descriptor, **changes)
        images = [msgspec.structs.replace(image, descriptor=descriptor), *sample.images[1:]]
        row = [msgspec.structs.replace(sample, images=images), *first.rows[0][1:]]
        batches = [msgspec.structs.replace(first, rows=[row, *first.rows[1:]]), *played.processed.micro_batches[1:]]
        return msgspec.structs.replace(played.processed, micro_batches=batches)

    with pytest.raises(GridError):
        learner.step(forged(payload={"image_grid_thw": [[1, 2, 18]]}))
    with pytest.raises(FingerprintError):
        learner.step(forged(layout_fingerprint="0" * 32))
    with pytest.raises(FilmrollError):
        learner.step(forged(recipe="0" * 32))


def test_a_raw_run_takes_no_arrays(tiny_model, played):
    """Neither as tensors, which its codec refuses, nor as flat arrays inside the body, which the trainer does."""
    with pytest.raises(MessageError, match="this run is raw"):
        RAW.encode(0, played.processed)
    flat = {name: array.reshape(-1).astype(np.uint8) for name, array in played.processed.images[0].arrays.items()}
    hidden = msgspec.structs.replace(played.raw, images=[ProcessedImage.of(played.processed.images[0].identity, flat)])
    trainer = Trainer(tiny_model, played.materializer, CONFIG)
    with pytest.raises(MessageError, match="carries the arrays of 1 images, and this run is raw"):
        trainer.step(through(hidden, RAW))


def test_an_image_that_is_gone_is_named_before_anything_is_sent(played, tmp_path):
    gone = Materializer(open_store(tmp_path), played.materializer.family)
    sample = played.raw.micro_batches[0].samples[0]
    with pytest.raises(FilmrollError, match=rf"image 0: sample {sample.name}, turn 0: "):
        with_images(played.raw, gone)
    first = places(played.raw)[0].descriptor.image
    kept = played.materializer.store.read(first)
    path = Path(first.uri.removeprefix("file://"))
    fresh = Materializer(played.materializer.store, played.materializer.family)
    try:
        path.unlink()
        with pytest.raises(ImageNotFoundError, match=sample.name):
            with_images(played.raw, fresh)
    finally:
        played.materializer.store.put(kept)
