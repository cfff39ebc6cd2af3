"""One pass of the vision tower for each distinct picture: the same logits and gradients, every place counted."""

import numpy as np
import pytest
import torch

from filmroll.errors import ReceiptError, TrainingError
from filmroll.families import load_family
from filmroll.materialize.feed import feeding, load_model, model_inputs, vision_tower
from filmroll.materialize.sheet import Picture, Sheet
from tests.plain import plain_inputs

SIZES = [(32, 32), (64, 96), (96, 64), (32, 32)]


@pytest.fixture(scope="module")
def family(tiny_model):
    return load_family(tiny_model)


@pytest.fixture
def model(tiny_model):
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def pictures(family):
    return [
        Picture((f"{number}", "r"), family.layout(*size).features, family.pixels([noise(number)]))
        for number, size in enumerate(SIZES)
    ]


def noise(number):
    width, height = SIZES[number]
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def rows_of(family, placed):
    """A row of tokens for each list of pictures, text between them."""
    pad = family.placeholders.image
    return [[65, *(token for picture in row for token in [*[pad] * picture.features, 66]), 67] for row in placed]


def arrays_of(placed):
    every = [picture for row in placed for picture in row]
    return {name: np.concatenate([one.arrays[name] for one in every]) for name in every[0].arrays}


def test_logits_and_gradients_are_those_of_the_plain_forward(family, model, pictures):
    a, b, c, d = pictures
    placed = [[a, b], [b, a, a], [c], [b, d]]
    rows = rows_of(family, placed)
    plain = model(**plain_inputs(family, rows, arrays_of(placed))).logits
    plain.square().mean().backward()
    expected = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    sheet = Sheet.of([picture for row in placed for picture in row])
    with feeding(model, family, sheet) as consumed:
        shared = model(**model_inputs(family, rows, sheet, pad="right")).logits
    shared.square().mean().backward()
    torch.testing.assert_close(shared, plain, rtol=0, atol=1e-6)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.grad, expected[name], rtol=1e-4, atol=1e-7, msg=name)
    assert consumed.images == 8
    assert len(sheet.distinct) == 4


def test_levels_are_normalized_when_a_model_is_fed(family, pictures):
    """To the last bit, so the model cannot tell."""
    levels = [
        Picture(one.identity, one.features, family.pixels([noise(number)], "uint8"))
        for number, one in enumerate(pictures)
    ]
    early, late = (
        model_inputs(family, rows_of(family, [[a, b, a], [c]]), Sheet.of([a, b, a, c]), pad="right")
        for a, b, c, _ in (pictures, levels)
    )
    assert early.keys() == late.keys()
    for name, value in early.items():
        assert late[name].dtype == value.dtype
        assert torch.equal(late[name], value)


def test_law_once(family, model, pictures):
    """The tower computes each distinct picture once, however many places use it."""
    a, b, *_ = pictures
    sheet = Sheet.of([a] * 5 + [b] * 3)
    seen = []
    vision_tower(model).register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append((len(args[0]), kwargs["grid_thw"].shape[0])), with_kwargs=True
    )
    with feeding(model, family, sheet), torch.no_grad():
        model(**model_inputs(family, rows_of(family, [[a] * 5, [b] * 3]), sheet, pad="right"))
    assert seen[0][0] == len(a.arrays["pixel_values"]) + len(b.arrays["pixel_values"])


def test_swapped_pictures_change_what_the_model_says(family, model, pictures):
    a, *_, d = pictures

    def logits(*row):
        sheet = Sheet.of(row)
        with feeding(model, family, sheet), torch.no_grad():
            return model(**model_inputs(family, rows_of(family, [row]), sheet, pad="right")).logits

    assert (logits(a, d) - logits(d, a)).abs().max() > 1e-3


def test_a_model_that_never_looks_has_consumed_nothing(family, model, pictures):
    sheet = Sheet.of(pictures[:1])
    with feeding(model, family, sheet) as consumed, torch.no_grad():
        model(input_ids=torch.tensor([[65, 66]]))
    assert consumed.images == 0


def test_a_tower_that_gives_other_features_is_an_error(family, model, pictures, monkeypatch):
    sheet = Sheet.of(pictures[:1])
    kind = type(model.model)
    give = kind.get_image_features

    def fewer(self, *args, **kwargs):
        output = give(self, *args, **kwargs)
        output.pooler_output = [one[:-1] for one in output.pooler_output]
        return output

    monkeypatch.setattr(kind, "get_image_features", fewer)
    with pytest.raises(ReceiptError), feeding(model, family, sheet), torch.no_grad():
        model(**model_inputs(family, rows_of(family, [pictures[:1]]), sheet, pad="right"))


def test_no_pictures_are_no_matter(family, model):
    sheet = Sheet.of([])
    with feeding(model, family, sheet) as consumed, torch.no_grad():
        model(**model_inputs(family, [[65, 66], [67]], sheet, pad="left"))
    assert consumed.images == 0


def test_a_model_that_cannot_see_is_refused_by_name(family, model, pictures):
    blind = torch.nn.ModuleDict({"language": model.model.language_model})
    with (
        pytest.raises(TrainingError, match="ModuleDict has no vision tower"),
        feeding(blind, family, Sheet.of(pictures)),
    ):
        pass
    model.model.eyes, model.model.visual = model.model.visual, None
    with pytest.raises(TrainingError, match="Qwen3VLModel is none of visual, vision_tower"):
        vision_tower(model)
