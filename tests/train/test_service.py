"""The trainer as a process sees it: weights that an engine takes, checkpoints that come back whole."""

import asyncio
import json

import pytest
import torch

from filmroll.engine.embedded.engine import EmbeddedEngine
from filmroll.engine.weights import FILE, read_weights, write_weights
from filmroll.errors import RunError, TransportError
from filmroll.families import load_family
from filmroll.materialize import Materializer
from filmroll.materialize.feed import suppress
from filmroll.store import open_store
from filmroll.train.learning.trainer import Trainer
from filmroll.train.process import checkpoint
from filmroll.train.process.service import TrainerService
from filmroll.train.process.team import Team
from filmroll.train.step import Ask, Progress, Publish, Restored, Take, TrainerConfig, TrainStep
from filmroll.wire.generate import GenerateRequest, SamplingParams
from filmroll.wire.training import MicroBatch
from filmroll.wire.transport import Codec, Window, open_receiver, open_sender
from tests.train.conftest import sample


@pytest.fixture(scope="module", params=["tiny_model", "tied_model"], ids=["untied", "tied"])
def model_dir(request):
    return request.getfixturevalue(request.param)


def service(model_dir, tmp_path, **config):
    materializer = Materializer(open_store(tmp_path / "images"), load_family(model_dir))
    trainer = Trainer(model_dir, materializer, TrainerConfig(threads=1, **config))
    return TrainerService(
        Team(trainer, weights=tmp_path / "weights", checkpoints=tmp_path / "checkpoints", keep=2),
        lambda begin: open_receiver(str(tmp_path / "samples"), Codec(TrainStep), Window(), begin=begin),
    )


def trainer_of(made):
    return made._team._trainer


def close(made):
    """As if its process had ended."""
    asyncio.run(made._samples.close())


def call(made, name, message):
    return asyncio.run(made.handlers()[name][1](message))


def send(tmp_path):
    """A step's samples into the stream; returns their number."""

    async def one():
        sender = await open_sender(str(tmp_path / "samples"), Codec(TrainStep), Window())
        number = await sender.send(TrainStep(1e-3, 0, [MicroBatch([[sample(6)]])]))
        await sender.close()
        return number

    return asyncio.run(one())


def learn(made, tmp_path, count):
    return [call(made, "step", Take(send(tmp_path))) for _ in range(count)]


def disturb(made, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in trainer_of(made).model.parameters():
            value.add_(torch.randn_like(value) * 0.05)


def test_published_weights_are_what_the_engine_samples_with(model_dir, tmp_path):
    made = service(model_dir, tmp_path)
    disturb(made)
    call(made, "publish", Publish(3))
    tokens = [65, 66, 67, 68]
    with torch.no_grad():
        logits = trainer_of(made).model(input_ids=torch.tensor([tokens])).logits
    expected = int(suppress(logits, load_family(model_dir))[0, -1].argmax())
    materializer = Materializer(open_store(tmp_path / "images"), load_family(model_dir))
    with EmbeddedEngine(model_dir, materializer.family, materializer, weights_dir=tmp_path / "weights") as engine:

        async def ask():
            await engine.update_weights(3)
            return await engine.generate(GenerateRequest(tokens, SamplingParams(max_tokens=1, temperature=0)))

        answer = asyncio.run(ask())
    assert answer.choices[0].token_ids[0] == expected
    assert answer.choices[0].weight_versions[0].version == "3"


def test_weights_are_published_in_fewer_bits_where_that_is_asked_for(model_dir, tmp_path):
    """Half as long a file, for an engine that has no more bits; the trainer's own stay as they are."""
    made = service(model_dir, tmp_path, weights_dtype="bfloat16")
    disturb(made)
    own = {name: value.clone() for name, value in trainer_of(made).model.state_dict().items()}
    call(made, "publish", Publish(1))
    shapes = {name: tuple(value.shape) for name, value in own.items()}
    for name, value in read_weights(tmp_path / "weights", 1, shapes).items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, own[name].to(torch.bfloat16)), name
    assert all(torch.equal(value, own[name]) for name, value in trainer_of(made).model.state_dict().items())
    half = (tmp_path / "weights" / "step_1" / FILE).stat().st_size
    write_weights(own, tmp_path / "whole", 1)
    assert half < 0.6 * (tmp_path / "whole" / "step_1" / FILE).stat().st_size


def test_old_versions_are_dropped_and_the_last_two_kept(model_dir, tmp_path):
    made = service(model_dir, tmp_path)
    for version in range(4):
        call(made, "publish", Publish(version))
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["step_2", "step_3"]


def test_a_checkpoint_brings_model_optimizer_and_progress_back(model_dir, tmp_path):
    made = service(model_dir, tmp_path)
    call(made, "restore", Ask())
    trainer = trainer_of(made)
    learn(made, tmp_path, 3)
    # Text alone leaves the vision tower without moments.
    for value in trainer.model.parameters():
        value.grad = torch.ones_like(value)
    trainer.optimizer.step()
    call(made, "save", Progress(2, 1))
    kept = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    moments = {
        name: trainer.optimizer.state[value]["exp_avg_sq"].clone() for name, value in trainer.model.named_parameters()
    }
    disturb(made)
    close(made)

    other = service(model_dir, tmp_path)
    assert call(other, "restore", Ask()).progress == Progress(2, 1)
    for name, value in trainer_of(other).model.named_parameters():
        assert torch.equal(value, kept[name])
        assert torch.equal(trainer_of(other).optimizer.state[value]["exp_avg_sq"], moments[name])


def test_only_the_newest_checkpoints_are_kept_and_the_newest_is_restored(model_dir, tmp_path):
    made = service(model_dir, tmp_path)
    assert call(made, "restore", Ask()) == Restored(Progress(), str(tmp_path / "samples"))
    for step in range(1, 4):
        learn(made, tmp_path, 1)
        call(made, "save", Progress(0, step))
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step_000002", "step_000003"]
    assert call(made, "restore", Ask()).progress == Progress(0, 3)


@pytest.mark.parametrize("damage", ["shard-00001-model-00001-of-00001.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named(tiny_model, tmp_path, damage):
    made = service(tiny_model, tmp_path)
    call(made, "restore", Ask())
    learn(made, tmp_path, 1)
    call(made, "save", Progress(0, 1))
    folder = checkpoint.newest(tmp_path / "checkpoints")
    (folder / damage).write_bytes(b"{")
    with pytest.raises(RunError, match="step_000001"):
        call(made, "restore", Ask())


def test_a_checkpoint_of_another_model_is_refused_before_anything_changes(tiny_model, tmp_path):
    made = service(tiny_model, tmp_path)
    call(made, "restore", Ask())
    learn(made, tmp_path, 1)
    call(made, "save", Progress(0, 1))
    model = trainer_of(made).model
    model.register_parameter("more", torch.nn.Parameter(torch.ones(2)))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    disturb(made)
    disturbed = {name: value.detach().clone() for name, value in model.named_parameters()}
    with pytest.raises(RunError, match="more is in one of model and checkpoint"):
        call(made, "restore", Ask())
    for name, value in model.named_parameters():
        assert torch.equal(value, disturbed[name])
        assert not torch.equal(value, before[name])


@pytest.mark.parametrize("state", [{"warmup": 0, "rl": 3}, {"format": "filmroll-checkpoint-1"}, []])
def test_a_checkpoint_of_another_format_is_refused(tiny_model, tmp_path, state):
    """As `model.safetensors`, `optimizer.safetensors` and a bare progress were, before ranks."""
    folder = tmp_path / "checkpoints" / "step_000003"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(RunError, match="step_000003 is not of the format filmroll-checkpoint-2"):
        call(service(tiny_model, tmp_path), "restore", Ask())


def test_random_states_come_back(tiny_model, tmp_path):
    made = service(tiny_model, tmp_path)
    call(made, "restore", Ask())
    learn(made, tmp_path, 1)
    call(made, "save", Progress(0, 1))
    drawn = torch.rand(3)
    call(made, "restore", Ask())
    assert torch.equal(torch.rand(3), drawn)


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tiny_model, tmp_path, monkeypatch):
    made = service(tiny_model, tmp_path)
    call(made, "restore", Ask())
    learn(made, tmp_path, 1)

    def full(*_, **__):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("torch.distributed.checkpoint.filesystem._write_files_from_queue", full)
        with pytest.raises(RunError, match="step_000001 could not be written"):
            call(made, "save", Progress(0, 1))
    assert list((tmp_path / "checkpoints").iterdir()) == []
    call(made, "save", Progress(0, 1))


def test_a_restored_trainer_learns_again_what_no_checkpoint_holds(tiny_model, tmp_path):
    made = service(tiny_model, tmp_path)
    call(made, "restore", Ask())
    learn(made, tmp_path, 1)
    call(made, "save", Progress(0, 1))
    first = [report.loss for report in learn(made, tmp_path, 2)]
    close(made)

    other = service(tiny_model, tmp_path)
    assert call(other, "restore", Ask()).progress.steps == 1
    assert [call(other, "step", Take(number)).loss for number in (1, 2)] == pytest.approx(first, rel=1e-6)


def test_steps_are_trained_in_order_or_not_at_all(tiny_model, tmp_path):
    made = service(tiny_model, tmp_path)
    with pytest.raises(TransportError, match="before it was restored"):
        call(made, "step", Take(0))
    call(made, "restore", Ask())
    learn(made, tmp_path, 1)
    send(tmp_path)
    with pytest.raises(TransportError, match="step 5 was to be trained, and the samples of step 1 came"):
        call(made, "step", Take(5))
    with pytest.raises(TransportError, match="cannot be acknowledged"):
        call(made, "save", Progress(0, 3))
