"""Packed rows: each sample's logits and gradients are those that it has alone, in every family that is trained."""

import msgspec
import numpy as np
import pytest
import torch

from filmroll.families import load_family
from filmroll.families.gemma4 import Gemma4
from filmroll.materialize.feed import feeding, load_model
from filmroll.materialize.sheet import Picture, Sheet
from filmroll.train.loading.rows import row_inputs, starts
from tests.families.cases import EVERY_CASE
from tests.plain import plain_inputs
from tests.train.conftest import sample

CASES = {case.name.partition("-")[0]: case for case in EVERY_CASE}
"""One of each model type."""
SIZES = [(64, 64), (128, 64)]
SHOWN = [(), (0,), (1, 0, 1), (0, 1)]
"""The pictures of each sample."""


@pytest.fixture(scope="module", params=sorted(CASES))
def built(request, tmp_path_factory):
    # More threads than free cores wait for each other: forwards this small get a hundred times slower.
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("case") / "model"
    CASES[request.param].build(folder)
    return load_family(folder), load_model(folder)


def pictures(family):
    noise = np.random.default_rng(0)
    return [
        Picture(
            (str(number), "r"),
            family.layout(width, height).features,
            family.pixels([noise.integers(0, 256, (height, width, 3), np.uint8)]),
        )
        for number, (width, height) in enumerate(SIZES)
    ]


def shown(family, drawn):
    """A sample for each entry of SHOWN, with text of another length around its pictures."""
    made = []
    for number, places in enumerate(SHOWN):
        text = np.arange(65, 68 + number)
        parts = [text, *(part for one in places for part in ([family.placeholders.image] * drawn[one].features, text))]
        ids = np.concatenate(parts).astype(np.int32)
        made.append(msgspec.structs.replace(sample(len(ids)), token_ids=ids, name=str(number)))
    return made


def alone(family, model, one, chosen):
    """Logits of a sample in a forward of its own, as transformers documents it."""
    joined = family.join([each.arrays for each in chosen]) if chosen else {}
    arrays = {name: array for name, array in joined.items() if name not in family.forward.unused}
    return model(**plain_inputs(family, [one.token_ids], arrays)).logits[0]


def test_packed_logits_and_gradients_are_those_of_each_sample_alone(built):
    family, model = built
    drawn = pictures(family)
    made = shown(family, drawn)
    order = [[2], [1, 0, 3]] if family.forward.packs else [[2], [1], [0], [3]]
    rows = [[made[number] for number in row] for row in order]
    sheet = Sheet.of([drawn[one] for row in order for number in row for one in SHOWN[number]])

    expected = {n: alone(family, model, made[n], [drawn[one] for one in SHOWN[n]]) for row in order for n in row}
    sum(logits.square().mean() for logits in expected.values()).backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()

    inputs = row_inputs(model, family, rows, sheet)
    if family.forward.marks:
        assert torch.equal(inputs[family.forward.marks] == 1, inputs["input_ids"] == family.placeholders.image)
    with feeding(model, family, sheet) as consumed:
        logits = model(**inputs, use_cache=False).logits
    assert consumed.images == sum(map(len, SHOWN))
    packed = {}
    for number, (line, start) in zip([number for row in order for number in row], starts(rows), strict=True):
        packed[number] = logits[line, start : start + made[number].tokens]
        torch.testing.assert_close(packed[number], expected[number], rtol=0, atol=1e-5, msg=str(number))
    sum(one.square().mean() for one in packed.values()).backward()
    for name, value in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(value.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)
    model.zero_grad()


def test_a_family_that_would_mix_samples_says_so(built):
    """Where the forward policy forbids packing, packing would really be wrong; so no family is slow without need."""
    family, model = built
    if family.forward.packs or (isinstance(family, Gemma4) and family.settings.merged):
        return
    drawn = pictures(family)
    *_, one, other = shown(family, drawn)
    sheet = Sheet.of([drawn[number] for number in (*SHOWN[-2], *SHOWN[-1])])
    with torch.no_grad():
        with feeding(model, family, sheet):
            logits = model(**row_inputs(model, family, [[one, other]], sheet), use_cache=False).logits
        expected = alone(family, model, other, [drawn[number] for number in SHOWN[-1]])
    assert (logits[0, one.tokens :] - expected).abs().max() > 1e-4
