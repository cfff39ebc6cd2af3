"""The trainer's forward equals the model's own in every family: logprobs, gradients, and what was consumed."""

import dataclasses

import numpy as np
import pytest
import torch

from filmroll.families import load_family
from filmroll.materialize import Materializer
from filmroll.materialize.feed import load_model, suppress, vision_tower
from filmroll.store import open_store
from filmroll.train.forward import forward
from filmroll.train.loader import Loader
from filmroll.wire.training import LossWeights, MicroBatch, PlacedImage, TrainingSample
from tests.families.cases import EVERY_CASE
from tests.plain import plain_inputs

CASES = {case.name.partition("-")[0]: case for case in EVERY_CASE}
"""One of each model type."""
SIZES = [(64, 40), (30, 90)]
SHOWN = [(0,), (1, 0, 1), (), (0, 1)]
"""The pictures of each sample: each of the two at several places, in several samples."""


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request, tmp_path_factory):
    """Model, loader and samples whose images are in a store."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("case")
    CASES[request.param].build(folder / "model")
    family, model = load_family(folder / "model"), load_model(folder / "model")
    text = model.config.get_text_config()
    if hasattr(text, "final_logit_softcapping"):
        # Released Gemma 4 models have it: whatever a model does behind its head, a trainer must see.
        text.final_logit_softcapping = 0.5
    store = open_store(folder / "store")
    noise = np.random.default_rng(0)
    album = [
        family.describe(store.put(noise.integers(0, 256, (height, width, 3), np.uint8))) for width, height in SIZES
    ]
    samples = [drawn(family, number, [album[one] for one in shown]) for number, shown in enumerate(SHOWN)]
    return family, model, Loader(Materializer(store, family), model), samples


def drawn(family, number, images):
    ids, placed = list(range(65, 70 + number)), []
    for image in images:
        placed.append(PlacedImage(image, len(ids)))
        ids += [*family.expansion(image), 70, 71]
    token_ids = np.array(ids, np.int32)
    trained = ~np.isin(token_ids, family.placeholders.unsampled)
    return TrainingSample(
        name=f"s{number}",
        token_ids=token_ids,
        trained=trained.astype(np.uint8),
        logprobs=np.zeros(len(ids), np.float32),
        temperatures=np.full(len(ids), 0.8, np.float32),
        versions=np.zeros(len(ids), np.int32),
        advantage=1.0,
        weights=LossWeights(rl=1.0),
        images=placed,
    )


def alone(family, model, loader, sample):
    """Logprobs of a sample's trained tokens, by the forward that transformers documents."""
    loaded = loader._images.load([image.descriptor for image in sample.images])
    arrays = {name: array for name, array in loaded.arrays.items() if name not in family.forward.unused}
    logits = model(**plain_inputs(family, [sample.token_ids], arrays)).logits[0]
    logprobs = torch.log_softmax(suppress(logits[:-1], family) / 0.8, -1)
    chosen = logprobs.gather(-1, torch.as_tensor(sample.token_ids[1:, None]).long())[:, 0]
    return chosen[torch.as_tensor(sample.trained[1:]).bool()]


def gradients(model):
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return found


def rows(family, samples):
    first, second, third, fourth = samples
    return [[first, second, third], [fourth]] if family.forward.packs else [[one] for one in samples]


def tower_calls(model, seen):
    """What the vision tower is given, summed up in its number of values."""
    return vision_tower(model).register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append((args[0] if args else kwargs["pixel_values"]).numel()),
        with_kwargs=True,
    )


@pytest.mark.parametrize("shares", [True, False], ids=["shared", "every_place"])
def test_logprobs_and_gradients_are_those_of_the_plain_forward(case, shares, monkeypatch):
    family, model, loader, samples = case
    expected = torch.cat([alone(family, model, loader, sample) for sample in samples])
    expected.mean().backward()
    plain = gradients(model)

    monkeypatch.setattr(family, "forward", dataclasses.replace(family.forward, shares=shares))
    out = forward(model, family, loader.load(MicroBatch(rows=rows(family, samples))))
    torch.testing.assert_close(out.logprobs, expected, rtol=0, atol=1e-5)
    assert out.receipt.referenced == out.receipt.consumed == sum(map(len, SHOWN))
    out.logprobs.mean().backward()
    found = gradients(model)
    assert found.keys() == plain.keys()
    assert any(value.abs().max() > 0 for name, value in found.items() if "vis" in name)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6, msg=name)


def test_the_tower_sees_a_picture_once_however_many_places_show_it(case, monkeypatch):
    family, model, loader, (first, *_) = case
    seen = []
    hook = tower_calls(model, seen)
    for shares, group in ((True, 1), (True, 4), (False, 4)):
        monkeypatch.setattr(family, "forward", dataclasses.replace(family.forward, shares=shares))
        with torch.no_grad():
            out = forward(model, family, loader.load(MicroBatch(rows=[[first]] * group)))
        assert out.receipt.consumed == group
    hook.remove()
    one, shared, apart = seen
    assert one == shared == apart / 4
