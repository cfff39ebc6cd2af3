"""How a model is dressed for training: the same gradients with less memory, fewer of them, and adapters."""

import pytest
import torch
from safetensors.torch import load_file

from filmroll.engine.weights import read_weights, write_weights
from filmroll.errors import ConfigError
from filmroll.materialize import Materializer
from filmroll.materialize.feed import load_model, vision_tower
from filmroll.train.learning.forward import forward
from filmroll.train.learning.model import merged, trainable, training_model
from filmroll.train.learning.trainer import Trainer
from filmroll.train.process import checkpoint
from filmroll.train.step import Progress, TrainerConfig, TrainStep
from filmroll.wire.training import MicroBatch
from tests.train.every_case import CASES, SHOWN, Ground, gradients


@pytest.fixture(scope="module", params=sorted(CASES))
def ground(request, tmp_path_factory):
    torch.set_num_threads(1)
    return Ground.of(request.param, tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.set_num_threads(1)
    return Ground.of("tiny", tmp_path_factory.mktemp("tiny"))


def passed(ground, config):
    """Logprobs and gradients of a forward and backward pass of the model so dressed."""
    model = training_model(ground.folder, config)
    out = forward(model, ground.family, ground.batch(model), dtype=config.dtype)
    out.logprobs.mean().backward()
    assert out.receipt.consumed == sum(map(len, SHOWN))
    return out.logprobs.detach(), gradients(model)


def saved_bytes(ground, config):
    """What a forward pass keeps for the backward one."""
    model = training_model(ground.folder, config)
    batch = ground.batch(model)
    kept = {}

    def keep(value):
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    own = {value.untyped_storage().data_ptr() for value in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        forward(model, ground.family, batch)
    return sum(size for place, size in kept.items() if place not in own)


def test_gradients_are_the_same_where_layers_are_computed_again(ground):
    logprobs, plain = passed(ground, TrainerConfig())
    again, recomputed = passed(ground, TrainerConfig(gradient_checkpointing=True))
    torch.testing.assert_close(again, logprobs, rtol=0, atol=0)
    assert recomputed.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(recomputed[name], value, rtol=1e-5, atol=1e-7, msg=name)
    assert saved_bytes(ground, TrainerConfig(gradient_checkpointing=True)) < saved_bytes(ground, TrainerConfig())


def test_layers_that_are_computed_again_have_no_dropout(tiny):
    model = training_model(tiny.folder, TrainerConfig(gradient_checkpointing=True))
    again = [name for name, module in model.named_modules() if module.training]
    assert len(again) == 4, "two layers of text and two of vision"
    assert not any(module.training for name in again for module in model.get_submodule(name).children())


def test_a_frozen_tower_keeps_nothing_and_learns_nothing(ground):
    logprobs, plain = passed(ground, TrainerConfig())
    config = TrainerConfig(freeze_vision=True, gradient_checkpointing=True)
    same, others = passed(ground, config)
    torch.testing.assert_close(same, logprobs, rtol=0, atol=0)
    model = training_model(ground.folder, config)
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert frozen
    assert others.keys() == plain.keys() - frozen
    for name, value in others.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-5, atol=1e-7, msg=name)
    assert len(trainable(model)) == len(list(model.parameters())) - len(frozen)

    made = []

    def graphs(_module, _args, output):
        made.extend(value.grad_fn for value in output.values() if isinstance(value, torch.Tensor))

    vision_tower(model).register_forward_hook(graphs)
    forward(model, ground.family, ground.batch(model))
    assert made
    assert set(made) == {None}
    assert saved_bytes(ground, TrainerConfig(freeze_vision=True)) < saved_bytes(ground, TrainerConfig())


def test_bfloat16_is_close_and_leaves_master_weights_alone(ground):
    logprobs, plain = passed(ground, TrainerConfig())
    rough, coarse = passed(ground, TrainerConfig(dtype="bfloat16"))
    assert rough.dtype == torch.float32
    assert 0 < (rough - logprobs).abs().max() < 0.1
    assert {value.dtype for value in coarse.values()} == {torch.float32}
    whole, rounded = (torch.cat([one[name].ravel() for name in plain]) for one in (plain, coarse))
    assert torch.nn.functional.cosine_similarity(rounded, whole, dim=0) > 0.99


LORA = TrainerConfig(lora_rank=4, gradient_checkpointing=True)


def learnt(ground, config, steps=8):
    """The model after some steps towards its samples, and the mean logprobs before each of them."""
    model = training_model(ground.folder, config)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    batch, seen = ground.batch(model), []
    for _ in range(steps):
        out = forward(model, ground.family, batch, dtype=config.dtype)
        seen.append(float(out.logprobs.detach().mean()))
        optimizer.zero_grad()
        (-out.logprobs.mean()).backward()
        optimizer.step()
    return model, seen


def test_adapters_learn_and_engines_get_them_merged(ground, tmp_path):
    model, seen = learnt(ground, LORA)
    assert seen[-1] > seen[0] + 0.1
    untouched = load_model(ground.folder)
    first = forward(untouched, ground.family, ground.batch(untouched))
    assert float(first.logprobs.detach().mean()) == pytest.approx(seen[0], abs=1e-5)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    plain = dict(untouched.state_dict())
    for name, value in model.state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(value, plain[name.replace(".base_layer", "")]), name

    before = {name: value.clone() for name, value in model.state_dict().items()}
    write_weights(dict(merged(model.state_dict().items(), LORA)), tmp_path, 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    told = read_weights(tmp_path, 1, {name: tuple(value.shape) for name, value in plain.items()})
    untouched.load_state_dict(told)
    batch = ground.batch(model)
    with torch.no_grad():
        expected, served = (forward(one, ground.family, batch).logprobs for one in (model, untouched))
    torch.testing.assert_close(served, expected, rtol=0, atol=1e-5)


def test_adapters_begin_alike_in_every_process(tiny):
    one = training_model(tiny.folder, LORA)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    two = training_model(tiny.folder, LORA)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], value)


def adapted(ground, **changes):
    model = training_model(ground.folder, TrainerConfig(lora_rank=2, **changes))
    return {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}


def test_targets_say_which_layers_are_adapted(tiny):
    text = adapted(tiny)
    assert len(text) == 2 * 7
    assert all("language_model" in name for name in text)
    assert {name.rpartition(".")[2] for name in adapted(tiny, lora_targets=("q_proj", "v_proj"))} == {
        "q_proj",
        "v_proj",
    }
    everywhere = adapted(tiny, lora_targets=("attn.qkv", "q_proj"))
    assert any("visual" in name for name in everywhere)
    with pytest.raises(ConfigError, match=r"'attn.qkv'.*gate_proj"):
        adapted(tiny, lora_targets=("attn.qkv",), freeze_vision=True)
    with pytest.raises(ConfigError, match="lm_head"):
        adapted(tiny, lora_targets=("lm_head",))


EVERYTHING = TrainerConfig(
    threads=1, dtype="bfloat16", gradient_checkpointing=True, freeze_vision=True, lora_rank=4, weight_decay=0.1
)


def test_a_trainer_keeps_its_adapters_alone_and_goes_on_from_them(tiny, tmp_path):
    def trainer():
        return Trainer(tiny.folder, Materializer(tiny.store, tiny.family), EVERYTHING)

    step = TrainStep(1e-2, 0, [MicroBatch(rows=tiny.rows)])
    learner = trainer()
    untouched = {name: value.clone() for name, value in learner.model.state_dict().items() if ".lora_" not in name}
    learner.step(step)
    saved = checkpoint.save(tmp_path, learner.model, learner.optimizer, Progress(rl=1))
    kept = {name for file in saved.glob("*.safetensors") for name in load_file(file)}
    assert len(kept) == 14 * 2 * 4 + 1, "of each adapter its two weights, each with two moments and a count; a state"
    assert all(".lora_" in name or name.startswith("random/") for name in kept)
    for name, value in untouched.items():
        assert torch.equal(learner.model.state_dict()[name], value)

    resumed = trainer()
    assert checkpoint.restore(saved, resumed.model, resumed.optimizer) == Progress(rl=1)
    assert learner.step(step).loss == resumed.step(step).loss
    for name, value in learner.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
