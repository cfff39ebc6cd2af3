"""The trainer's forward equals the model's own in every family: logprobs, gradients, and what was consumed."""

import dataclasses

import pytest
import torch

from filmroll.materialize import Materializer
from filmroll.materialize.feed import load_model, suppress, vision_tower
from filmroll.train.forward import forward
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


@pytest.mark.parametrize("shares", [True, False], ids=["shared", "every_place"])
def test_logprobs_and_gradients_are_those_of_the_plain_forward(case, shares, monkeypatch):
    ground, model = case
    expected = torch.cat([alone(ground, model, sample) for sample in ground.samples])
    expected.mean().backward()
    plain = gradients(model)

    monkeypatch.setattr(ground.family, "forward", dataclasses.replace(ground.family.forward, shares=shares))
    out = forward(model, ground.family, ground.batch(model))
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
