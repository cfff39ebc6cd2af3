"""The trainer's forward equals the model's own in every family: logprobs, gradients, and what was consumed."""

import dataclasses

import msgspec
import numpy as np
import pytest
import torch

from filmroll.engine.embedded.batch import Batch, Row, prompt_positions
from filmroll.engine.images.resolve import Resolved
from filmroll.materialize import Materializer
from filmroll.materialize.feed import load_model, suppress, vision_tower
from filmroll.train.learning.forward import forward
from filmroll.wire.generate import SamplingParams
from tests.plain import plain_inputs
from tests.train.every_case import CASES, SHOWN, Ground, gradients


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request, tmp_path_factory):
    torch.set_num_threads(1)
    ground = Ground.of(request.param, tmp_path_factory.mktemp("case"))
    model = load_model(ground.folder)
    text = model.config.get_text_config()
    if hasattr(text, "final_logit_softcapping"):
        # Released Gemma 4 models have it: whatever a model does behind its head, a trainer must see.
        text.final_logit_softcapping = 0.5
    return ground, model


def alone(ground, model, sample):
    """Logprobs of a sample's trained tokens, by the forward that transformers documents."""
    family = ground.family
    loaded = Materializer(ground.store, family).load([image.descriptor for image in sample.images])
    arrays = {name: array for name, array in loaded.arrays.items() if name not in family.forward.unused}
    logits = model(**plain_inputs(family, [sample.token_ids], arrays)).logits[0]
    logprobs = torch.log_softmax(suppress(logits[:-1], family) / 0.8, -1)
    chosen = logprobs.gather(-1, torch.as_tensor(sample.token_ids[1:, None]).long())[:, 0]
    return chosen[torch.as_tensor(sample.trained[1:]).bool()]


def tower_calls(model, seen):
    """How many values the vision tower is given in each call."""
    return vision_tower(model).register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append((args[0] if args else kwargs["pixel_values"]).numel()),
        with_kwargs=True,
    )


@pytest.mark.parametrize(
    ("shares", "at_once"), [(True, 3), (False, 1000)], ids=["shared-piecewise", "every_place-at_once"]
)
def test_logprobs_and_gradients_are_those_of_the_plain_forward(case, shares, at_once, monkeypatch):
    """Pictures seen once and a few logits at a time; a pass for each place and all logits at once."""
    ground, model = case
    expected = torch.cat([alone(ground, model, sample) for sample in ground.samples])
    expected.mean().backward()
    plain = gradients(model)

    monkeypatch.setattr(ground.family, "forward", dataclasses.replace(ground.family.forward, shares=shares))
    out = forward(model, ground.family, ground.batch(model), at_once=at_once)
    torch.testing.assert_close(out.logprobs, expected, rtol=0, atol=1e-5)
    assert out.receipt.referenced == out.receipt.consumed == sum(map(len, SHOWN))
    out.logprobs.mean().backward()
    found = gradients(model)
    assert found.keys() == plain.keys()
    assert any(value.abs().max() > 0 for name, value in found.items() if "vis" in name)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6, msg=name)


def test_the_tower_sees_a_picture_once_however_many_places_show_it(case, monkeypatch):
    ground, model = case
    first = ground.samples[0]
    seen = []
    hook = tower_calls(model, seen)
    for shares, group in ((True, 1), (True, 4), (False, 4)):
        monkeypatch.setattr(ground.family, "forward", dataclasses.replace(ground.family.forward, shares=shares))
        with torch.no_grad():
            out = forward(model, ground.family, ground.batch(model, [[first]] * group))
        assert out.receipt.consumed == group
    hook.remove()
    one, shared, apart = seen
    assert one == shared == apart / 4


ANSWER = 4


@torch.no_grad()
def answered(ground, model):
    """Each sample's tokens as a prompt, all in one batch of our own engine: the samples with answers behind them."""
    images = Materializer(ground.store, ground.family)
    params = SamplingParams(max_tokens=ANSWER, temperature=0.8)
    rows = []
    for sample in ground.samples:
        loaded = images.load([image.descriptor for image in sample.images])
        resolved, prompt = Resolved(loaded.pictures, loaded.receipt), sample.token_ids.tolist()
        rows.append(Row(prompt, params, resolved, prompt_positions(model, ground.family, prompt, resolved), None))
    batch, draws = Batch.prefill(model, ground.family, rows), torch.Generator().manual_seed(0)
    batch.sample(draws)
    for _ in range(ANSWER - 1):
        batch.advance()
        batch.sample(draws)
    return [with_answer(sample, row) for sample, row in zip(ground.samples, rows, strict=True)]


def with_answer(sample, row):
    blank = np.zeros(sample.tokens, np.float32)
    return msgspec.structs.replace(
        sample,
        token_ids=np.array([*sample.token_ids, *row.tokens], np.int32),
        trained=np.concatenate([blank, np.ones(ANSWER)]).astype(np.uint8),
        logprobs=np.concatenate([blank, row.logprobs]).astype(np.float32),
        temperatures=np.concatenate([blank, np.full(ANSWER, 0.8)]).astype(np.float32),
        versions=np.zeros(sample.tokens + ANSWER, np.int32),
    )


def test_our_engine_and_the_trainer_say_the_same(case):
    """One batch with padding at its left there, packed rows here."""
    ground, model = case
    said = dataclasses.replace(ground, samples=answered(ground, model))
    batch = said.batch(model)
    assert len(batch.logprobs) == ANSWER * len(SHOWN)
    with torch.no_grad():
        torch.testing.assert_close(
            forward(model, ground.family, batch).logprobs, batch.logprobs.float(), rtol=0, atol=1e-5
        )
