"""The laws over random conversations with branches and compactions, down to what a trainer's reader makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from filmroll.families.base import Placeholders
from filmroll.families.qwen_vl import QwenVL, QwenVLSettings
from filmroll.materialize import Materializer, check_placements
from filmroll.rollout.trajectory import Trajectory
from filmroll.store import open_store
from filmroll.train.batches.samples import branch_advantages, samples
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.packed import pack, unpack
from filmroll.wire.training import LossWeights, TrainingSample, check_sample
from tests.rollout.graphs import PAD, Conversations
from tests.store.effort import effort

FAMILY = QwenVL(
    QwenVLSettings(patch_size=16, min_pixels=1024, max_pixels=2**20),
    placeholders=Placeholders(image=PAD, unsampled=(PAD,), texts=()),
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Materializer:
    return Materializer(open_store(tmp_path_factory.mktemp("images")), FAMILY)


@pytest.fixture(scope="module")
def images(reader: Materializer) -> list[ImageDescriptor]:
    """Three small pictures of one, two and four tokens."""
    noise = np.random.default_rng(0)
    sizes = ((32, 32), (32, 64), (64, 64))
    return [FAMILY.describe(reader.store.put(noise.integers(0, 256, (*size, 3), np.uint8))) for size in sizes]


class Trained(Conversations):
    """Random conversations whose trajectories go all the way to a trainer's reader."""

    reader: Materializer

    def finished(self, trajectory: Trajectory) -> None:
        back = unpack(pack(trajectory), Trajectory)
        ((advantage, scored),) = branch_advantages([back])
        made = samples(back, FAMILY, advantage=advantage, weights=LossWeights(rl=1.0), scored=scored)
        self.law_whole(made)
        self.law_counted(made)
        self.every_sampled_token_is_trained_once(back, made)
        self.law_linear(trajectory)

    def law_whole(self, made: Sequence[TrainingSample]) -> None:
        for sample in made:
            check_sample(sample)
            check_placements(
                sample.token_ids,
                [image.offset for image in sample.images],
                [image.descriptor for image in sample.images],
                FAMILY,
            )

    def law_counted(self, made: Sequence[TrainingSample]) -> None:
        placed = [image.descriptor for sample in made for image in sample.images]
        pads = sum(int((sample.token_ids == PAD).sum()) for sample in made)
        receipt = self.reader.load(placed).receipt
        assert receipt.referenced == receipt.verified == receipt.decoded == len(placed)
        assert sum(image.tokens for image in placed) == pads

    def every_sampled_token_is_trained_once(self, trajectory: Trajectory, made: Sequence[TrainingSample]) -> None:
        assert sum(int(sample.trained.sum()) for sample in made) == self.sampled
        assert len(made) <= len(trajectory.leaves())
        assert len({sample.name for sample in made}) == len(made)
        for sample in made:
            trained = sample.trained.astype(bool)
            assert trained[-1], "what nothing trains is no part of a sample"
            np.testing.assert_array_equal(
                sample.logprobs[trained], -(sample.token_ids[trained] + sample.versions[trained]) / 8
            )

    def law_linear(self, trajectory: Trajectory) -> None:
        """The bytes follow from own tokens, nodes and distinct images, whatever the graph looks like."""
        tokens = sum(len(node.token_ids) for node in trajectory.nodes)
        assert len(pack(trajectory)) <= 128 + 128 * len(trajectory.nodes) + 8 * tokens + 640 * len(trajectory.images)


@pytest.fixture
def machine(reader: Materializer, images: Sequence[ImageDescriptor]) -> Iterator[type[Trained]]:
    yield type("Machine", (Trained,), {"reader": reader, "__init__": lambda self: Trained.__init__(self, images)})


@pytest.mark.reliability
@pytest.mark.timeout(0)
def test_laws_of_random_conversations(machine: type[Trained]) -> None:
    """Prefix, Whole, Counted and Linear."""
    # In lots: what hypothesis remembers of the examples of one lot slows the next ones down.
    for _ in range(effort(1, 50)):
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=effort(150, 2_000),
                stateful_step_count=12,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
