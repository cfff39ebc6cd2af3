"""Raw, inline and processed are one thing to a trainer: in every family the same steps, to the last bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from filmroll.materialize import Materializer
from filmroll.materialize.carried import Carried
from filmroll.store import open_store
from filmroll.store.nowhere import URL as INLINE
from filmroll.train.learning.trainer import Trainer
from filmroll.train.loading.processed import with_images
from filmroll.train.step import StepReport, TrainerConfig, TrainStep
from filmroll.wire.training import MicroBatch, TrainingSample
from filmroll.wire.transport import Codec
from tests.train.every_case import CASES, Ground

CONFIG = TrainerConfig(threads=1)


def step(ground: Ground) -> TrainStep:
    """In two micro-batches, both of which show the second picture."""
    rows = ground.rows
    middle = len(rows) // 2
    return TrainStep(1e-3, 0, [MicroBatch(rows[:middle]), MicroBatch(rows[middle:])])


def inline(ground: Ground) -> Ground:
    """The same samples, their images inside their references."""
    nowhere = open_store(INLINE)

    def held(sample: TrainingSample) -> TrainingSample:
        images = [
            msgspec.structs.replace(
                one,
                descriptor=msgspec.structs.replace(
                    one.descriptor, image=nowhere.put(ground.store.read(one.descriptor.image))
                ),
            )
            for one in sample.images
        ]
        return msgspec.structs.replace(sample, images=images)

    return replace(ground, store=nowhere, samples=[held(sample) for sample in ground.samples])


def sent(work: TrainStep, codec: Codec[TrainStep]) -> TrainStep:
    """The step as a trainer gets it."""
    data = b"".join(bytes(part) for part in codec.encode(0, work))
    return codec.decode(codec.split(memoryview(data)))[1]


RAW, PROCESSED = Codec(TrainStep), Codec(TrainStep, tensors=True)


def learn(trainer: Trainer, work: TrainStep) -> tuple[list[StepReport], dict[str, torch.Tensor]]:
    """What two steps report, but for the time that they take, and the weights afterwards."""
    reports = [msgspec.structs.replace(trainer.step(work), seconds=0, image_wait=0) for _ in range(2)]
    return reports, dict(trainer.model.named_parameters())


def assert_same(found, expected) -> None:
    assert found[0] == expected[0]
    assert all(torch.equal(value, expected[1][name]) for name, value in found[1].items())


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_mode_learns_the_very_same(case: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    ground = Ground.of(case, tmp_path)
    images, work = Materializer(ground.store, ground.family), step(ground)
    expected = learn(Trainer(ground.folder, images, CONFIG), sent(work, RAW))
    assert expected[0][0].loss != expected[0][1].loss

    carried = sent(with_images(work, images, threads=2), PROCESSED)
    assert len(carried.images) == 2
    assert_same(learn(Trainer(ground.folder, Carried(ground.family), CONFIG), carried), expected)

    held = inline(ground)
    seeing = Trainer(ground.folder, Materializer(held.store, held.family), CONFIG)
    assert_same(learn(seeing, sent(step(held), RAW)), expected)


@pytest.mark.parametrize("case", ["gemma3", "idefics3", "internvl", "llava_onevision", "qwen3_vl"])
@pytest.mark.parametrize("gone", [0, 1])
def test_so_they_do_without_an_image(case: str, gone: int, tmp_path: Path) -> None:
    """A grey picture stands beside those that came, whose arrays are fewer than it would have by itself."""
    torch.set_num_threads(1)
    ground = Ground.of(case, tmp_path)
    Path(ground.samples[1].images[gone].descriptor.image.uri.removeprefix("file://")).unlink()
    images, work = Materializer(ground.store, ground.family), step(ground)
    expected = learn(Trainer(ground.folder, images, CONFIG, may_miss=0.9), work)
    assert expected[0][0].receipt.missing > 0
    carried = sent(with_images(work, images, may_miss=True), PROCESSED)
    assert (len(carried.images), len(carried.lost)) == (1, 1)
    assert_same(learn(Trainer(ground.folder, Carried(ground.family), CONFIG, may_miss=0.9), carried), expected)
