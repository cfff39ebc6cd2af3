"""Images are made while the model is at others: each once, in order, a bounded amount ahead, and no thread stays."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest
import torch

from filmroll.errors import FilmrollError, ImageDamagedError, ImageNotFoundError, TrainingError
from filmroll.families import load_family
from filmroll.materialize import Materializer
from filmroll.materialize.sheet import Picture
from filmroll.train.learning.trainer import Trainer
from filmroll.train.loading.prefetch import Prefetch
from filmroll.train.step import TrainerConfig, TrainStep
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.training import MicroBatch
from tests.train import conftest
from tests.train.album import CountingStore, counting_store, damage, fresh, lose, put, showing


def picture(number: int) -> ImageDescriptor:
    return conftest.descriptor(number)


class Darkroom:
    """Makes pictures, one of which may be held up until somebody lets it through."""

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()
        self.order: list[int] = []
        self.through = threading.Event()
        self.through.set()

    def make(self, descriptor: ImageDescriptor) -> Picture:
        self.order.append(int(descriptor.image.sha256, 16))
        self.made[descriptor.image.sha256] += 1
        assert self.through.wait(60)
        return Picture(descriptor.identity, 1, {})


@contextmanager
def ahead(darkroom: Darkroom, wanted: list[list[int]], *, limit: int, threads: int = 1) -> Iterator[Prefetch]:
    """Every picture weighs 10."""
    made = Prefetch(
        darkroom.make,
        lambda _: 10,
        [[picture(number) for number in batch] for batch in wanted],
        limit=limit,
        threads=threads,
    )
    with closing(made):
        yield made


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_each_distinct_image_is_made_once_and_in_order() -> None:
    """A group's rollouts, in one micro-batch or in several, share theirs."""
    darkroom = Darkroom()
    wanted = [[1, 2, 1, 1], [2, 3], [], [3, 1], [4]]
    with ahead(darkroom, wanted, limit=1000) as made:
        for turn in range(len(wanted)):
            made.reach(turn)
    assert darkroom.order == [1, 2, 3, 4]


def test_the_next_ones_are_made_before_their_turn() -> None:
    darkroom = Darkroom()
    with ahead(darkroom, [[1], [2], [3]], limit=20) as made:
        made.reach(0)
        until(lambda: darkroom.order == [1, 2])
        made.reach(1)
        until(lambda: darkroom.order == [1, 2, 3])


@pytest.mark.parametrize(("limit", "begun"), [(0, 2), (25, 2), (30, 3), (35, 3), (40, 4), (1000, 6)])
def test_no_more_is_made_ahead_than_the_limit_allows(limit: int, begun: int) -> None:
    """The two of the first micro-batch are there whatever the limit is, and count."""
    darkroom = Darkroom()
    with ahead(darkroom, [[1, 2], [3], [4, 5], [6]], limit=limit) as made:
        made.reach(0)
        until(lambda: len(darkroom.order) == begun)
        time.sleep(0.02)
        assert len(darkroom.order) == begun
        assert made._nbytes <= max(limit, 20)


def test_what_is_behind_makes_room() -> None:
    darkroom = Darkroom()
    wanted = [[number] for number in range(1, 30)]
    with ahead(darkroom, wanted, limit=30) as made:
        for turn in range(len(wanted)):
            made.reach(turn)
            assert made._nbytes <= 30
            assert len(made._held) <= 3
    assert darkroom.order == list(range(1, 30))


def test_a_micro_batch_larger_than_the_limit_goes_through_alone() -> None:
    darkroom = Darkroom()
    with ahead(darkroom, [[1], [2, 3, 4], [5]], limit=10) as made:
        made.reach(0)
        made.reach(1)
        time.sleep(0.02)
        assert darkroom.order == [1, 2, 3, 4]
        made.reach(2)
    assert darkroom.order == [1, 2, 3, 4, 5]


def test_waiting_is_told() -> None:
    darkroom = Darkroom()
    darkroom.through.clear()
    with ahead(darkroom, [[1], [2]], limit=20) as made:
        threading.Timer(1, darkroom.through.set).start()
        assert made.reach(0) > 0.15
        until(lambda: darkroom.order == [1, 2])
        made.reach(1)


def threads_of_images() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("filmroll-images")]


def test_what_has_not_begun_is_left_out_at_the_end() -> None:
    darkroom = Darkroom()
    darkroom.through.clear()
    with ahead(darkroom, [[], [1, 2, 3, 4, 5]], limit=1000) as made:
        made.reach(0)
        until(lambda: darkroom.order == [1])
        threading.Timer(0.1, darkroom.through.set).start()
    assert darkroom.order == [1]
    assert not threads_of_images()


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return counting_store(tmp_path / "images")


@pytest.fixture
def trainer(tiny_model: Path, store: CountingStore) -> Trainer:
    """Its cache keeps nothing: what is read once is read once because it was held."""
    materializer = Materializer(store, load_family(tiny_model), cache_bytes=0)
    return Trainer(tiny_model, materializer, TrainerConfig(threads=1))


def test_law_once(trainer: Trainer, store: CountingStore) -> None:
    """Each unique image of a step is read and decoded once, though a group of 8 shows it in several micro-batches."""
    groups = [[put(store, trainer.family, 2 * group + number) for number in range(2)] for group in range(3)]
    samples = [showing(trainer.family, f"{g}/{n}", album) for g, album in enumerate(groups) for n in range(8)]
    store.reads.clear()
    work = TrainStep(0.0, 0, [MicroBatch([[one] for one in samples[start : start + 3]]) for start in range(0, 24, 3)])
    report = trainer.step(work)
    assert store.reads == Counter({image.image.sha256: 1 for album in groups for image in album})
    assert report.receipt.consumed == 48
    assert 0 < report.image_wait < report.seconds


def test_without_room_the_step_is_the_same(trainer: Trainer, store: CountingStore, tiny_model: Path) -> None:
    """Nothing is made ahead, each micro-batch goes through alone, and the gradients are equal to the bit."""
    album = [put(store, trainer.family, number, 64 + 32 * number) for number in range(3)]
    batches = [MicroBatch([[showing(trainer.family, f"s{turn}", album[: turn % 3 + 1])]]) for turn in range(5)]
    trainer.step(TrainStep(0.0, 0, batches))
    other = Trainer(tiny_model, fresh(trainer._loader._images), TrainerConfig(threads=1, prefetch_mb=0, readers=1))
    other.step(TrainStep(0.0, 0, batches))
    for (name, mine), (_, theirs) in zip(trainer.model.named_parameters(), other.model.named_parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad), name


@pytest.mark.parametrize(("harm", "kind"), [(lose, ImageNotFoundError), (damage, ImageDamagedError)])
def test_an_error_belongs_to_the_micro_batch_that_meets_it(
    trainer: Trainer, store: CountingStore, harm: Callable[[ImageDescriptor], None], kind: type[FilmrollError]
) -> None:
    """In the middle: those before it are done, those after it are not begun, nothing is learnt and no thread stays."""
    album = [put(store, trainer.family, number) for number in range(6)]
    names = [f"rl_0/prompt_{number}/rollout_0/branch_0" for number in range(6)]
    samples = [showing(trainer.family, name, [album[0], one]) for name, one in zip(names, album, strict=True)]
    harm(album[3])
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    seen = []
    forward = trainer._accumulate
    trainer._accumulate = lambda batch, *rest: (seen.append(batch.samples[0].name), forward(batch, *rest))
    with pytest.raises(kind) as caught:
        trainer.step(TrainStep(1e-3, 0, [MicroBatch([[one]]) for one in samples]))
    assert str(caught.value).startswith("image 1: sample rl_0/prompt_3/rollout_0/branch_0, turn 1: ")
    assert seen == [one.name for one in samples[:3]]
    assert not threads_of_images()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())
    assert store.reads[album[3].image.sha256] == 1


def test_a_failure_of_the_model_leaves_no_thread(trainer: Trainer, store: CountingStore) -> None:
    album = [put(store, trainer.family, number) for number in range(4)]
    work = TrainStep(1e-3, 0, [MicroBatch([[showing(trainer.family, f"s{n}", [one])]]) for n, one in enumerate(album)])

    def fails(*_: object) -> None:
        raise TrainingError("the model fails")

    trainer._accumulate = fails
    with pytest.raises(TrainingError, match="the model fails"):
        trainer.step(work)
    assert not threads_of_images()


def test_lies_are_told_from_what_they_claim(trainer: Trainer, store: CountingStore) -> None:
    """A size that has no layout weighs nothing; it is an error in its own micro-batch."""
    good = put(store, trainer.family, 1)
    lie = msgspec.structs.replace(good, image=msgspec.structs.replace(good.image, width=2**20, height=1))
    samples = [showing(trainer.family, name, [one]) for name, one in (("good", good), ("lie", lie))]
    with pytest.raises(FilmrollError, match="image 0: sample lie, turn 0: "):
        trainer.step(TrainStep(1e-3, 0, [MicroBatch([[one]]) for one in samples]))
