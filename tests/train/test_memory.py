"""What a step does where the device has no room for a micro-batch."""

from __future__ import annotations

import pytest
import torch

from filmroll.errors import TrainingError
from filmroll.families import load_family
from filmroll.materialize import Materializer
from filmroll.store import open_store
from filmroll.train.learning.memory import most_taken
from filmroll.train.learning.trainer import Trainer
from filmroll.train.step import TrainStep
from filmroll.wire.training import MicroBatch
from tests.train.test_packed_step import UNCLIPPED, made_samples


@pytest.fixture(scope="module")
def trainer(tiny_model, tmp_path_factory):
    store = open_store(tmp_path_factory.mktemp("images"))
    return Trainer(tiny_model, Materializer(store, load_family(tiny_model)), UNCLIPPED)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_micro_batch_that_does_not_fit_is_told_with_its_size_and_changes_nothing(trainer, where):
    samples = made_samples(trainer.family, trainer._loader._images.store)
    one, other = samples[1], samples[6]
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    layer = trainer.model.model.language_model.layers[1]
    register = layer.register_forward_hook if where == "forward" else layer.register_full_backward_hook
    hook = register(full)
    with pytest.raises(TrainingError, match="no memory for a micro-batch of 2 rows of up to") as told:
        trainer.step(TrainStep(1e-3, 0, [MicroBatch([[one], [other]])]))
    hook.remove()
    longest = max(one.tokens, other.tokens)
    assert f"of up to {longest} tokens and 28 vision patches" in str(told.value)
    assert "Lower trainer.max_tokens" in told.value.remedy
    assert "2.00 GiB" in told.value.private
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert trainer.step(TrainStep(0.0, 0, [MicroBatch([[one]])])).gpu_memory is None


def test_only_a_gpus_memory_is_looked_at():
    assert most_taken(torch.device("cpu")) == 0
