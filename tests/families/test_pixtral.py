"""Mistral 3 and Pixtral: golden numbers, and what is taken from a checkpoint's files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from transformers import AutoConfig
from transformers.models.pixtral import image_processing_pil_pixtral as pixtral

from filmroll.errors import CheckpointError, GridError, LayoutError
from filmroll.families import load_family
from filmroll.families.pixtral import Pixtral, PixtralSettings
from filmroll.image import ImageRef
from tests.families.cases.pixtral import CASES
from tests.families.pictures import EDGES, noise, sizes

GOLDEN_FINGERPRINT = "906d2cc4c560238fccff94d00ce90513"
GOLDEN_RECIPE = "74c272c08a72b1bf990148a8b24951cf"
IDS = {"[IMG]": 10, "[IMG_BREAK]": 12, "[IMG_END]": 13}
RELEASED: dict[str, Any] = {
    "image_processor_type": "PixtralImageProcessorFast",
    "processor_class": "PixtralProcessor",
    "crop_size": None,
    "do_center_crop": None,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "patch_size": 14,
    "resample": 3,
    "size": {"longest_edge": 1540},
}
JOINT = {"patch_size": 14, "spatial_merge_size": 2, "image_token": "[IMG]", "processor_class": "PixtralProcessor"}
TOWER = {"model_type": "pixtral", "patch_size": 14}
PIXTRAL_12B: dict[str, Any] = {
    "processor": {"size": {"longest_edge": 1024}, "patch_size": {"height": 16, "width": 16}},
    "joint": {"patch_size": 16, "processor_class": "PixtralProcessor"},
    "model_type": "llava",
    "vision_config": {"model_type": "pixtral", "patch_size": 16},
    "image_token_index": 10,
}
Make = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Make:
    """Writes what the family reads of a checkpoint, as it is released."""

    def make(
        processor: dict[str, Any] | None = None,
        joint: dict[str, Any] | None = None,
        ids: Any = None,
        model_type: str = "mistral3",
        **config: Any,
    ) -> Path:
        files = {
            "config": {"model_type": model_type, "vision_config": TOWER, **config},
            "preprocessor_config": RELEASED | (processor or {}),
            "processor_config": JOINT if joint is None else joint,
            "tokenizer": {"added_tokens": [{"content": text, "id": number} for text, number in (ids or IDS).items()]},
        }
        for name, values in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(values))
        return tmp_path

    return make


def test_golden_names(folder: Make) -> None:
    """A change here makes every stored descriptor unreadable: it must be meant."""
    family = load_family(folder())
    assert (family.fingerprint, family.recipe) == (GOLDEN_FINGERPRINT, GOLDEN_RECIPE)


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        (28, 28, (1, 1, 1)),
        (29, 28, (1, 1, 2)),
        (640, 480, (1, 18, 23)),
        (1920, 1080, (1, 31, 55)),
        (4000, 3000, (1, 42, 55)),
        (1, 1, (1, 1, 1)),
        (1541, 2, (1, 1, 55)),
    ],
)
def test_golden_layouts(folder: Make, width: int, height: int, grid: tuple[int, int, int]) -> None:
    family = load_family(folder())
    layout = family.layout(width, height)
    _, rows, columns = grid
    assert (layout.grid, layout.payload) == (grid, {"token_grid": [list(grid)]})
    assert (layout.features, layout.tokens) == (rows * columns, rows * (columns + 1))
    assert family.cost(layout) == 4 * rows * columns


@pytest.mark.parametrize(("patch", "merge", "most"), [(14, 2, (1540, 1540)), (16, 1, (1024, 1024)), (8, 3, (200, 90))])
def test_sides_are_those_of_transformers(patch: int, merge: int, most: tuple[int, int]) -> None:
    numbers = PixtralSettings(patch_size=patch, spatial_merge_size=merge, max_height=most[0], max_width=most[1])
    family, refused = Pixtral(numbers, ids=(10, 12, 13), texts=()), 0
    for height, width in [*EDGES, *sizes(CASES[0], 1000)]:
        empty = np.empty((3, height, width), np.void)
        tall, wide = pixtral.get_resize_output_image_size(empty, most, patch * merge, "channels_first")
        if min(tall, wide) < 1:
            refused += 1
            with pytest.raises(LayoutError, match="resized to"):
                family.layout(width, height)
            continue
        assert family.layout(width, height).grid == (1, tall // (patch * merge), wide // (patch * merge))
    assert 0 < refused < 200


def test_the_class_defaults_are_those_of_transformers() -> None:
    ours, theirs = PixtralSettings(), pixtral.PixtralImageProcessorPil()
    for name in ("do_rescale", "rescale_factor", "do_normalize"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.max_height == ours.max_width == theirs.size["longest_edge"]
    assert (ours.image_mean, ours.image_std) == (tuple(theirs.image_mean), tuple(theirs.image_std))
    assert ours.resample == int(theirs.resample)
    # Those of PixtralProcessor, which cannot be made without torchvision.
    assert (ours.patch_size, ours.spatial_merge_size) == (16, 1)


def test_rows_break_and_the_last_one_ends(folder: Make) -> None:
    family = load_family(folder())
    image = family.describe(ImageRef("file:///a.png", "ab" * 32, "image/png", 80, 50, 1))
    assert family.expansion(image).tolist() == [10, 10, 10, 12, 10, 10, 10, 13]
    assert (family.placeholders.pad, family.placeholders.unsampled) == (10, (10, 12, 13))
    assert family.placeholders.texts == ("[IMG]", "[IMG_BREAK]", "[IMG_END]")


def test_a_grid_that_is_not_the_placeholders_is_refused(folder: Make) -> None:
    family = load_family(folder())
    image = family.describe(ImageRef("file:///a.png", "ab" * 32, "image/png", 80, 50, 1))
    for payload in ({"token_grid": [[1, 2, 2]]}, {"token_grid": []}, {}):
        with pytest.raises(GridError, match="8 tokens"):
            family.expansion(msgspec.structs.replace(image, payload=payload))


def test_smaller_pictures_are_padded_after_normalizing(folder: Make) -> None:
    """A picture is padded for its neighbours, not for itself: alone it has its own size."""
    family = load_family(folder())
    small, large = np.zeros((28, 56, 3), np.uint8), noise(84, 28, 1)
    arrays = family.pixels([small, large])
    assert arrays["image_sizes"].tolist() == [[28, 56], [84, 28]]
    assert arrays["pixel_values"].shape == (2, 3, 84, 56)
    np.testing.assert_array_equal(arrays["pixel_values"][0, :, :28], family.pixels([small])["pixel_values"][0])
    assert (arrays["pixel_values"][0, :, :28] < -1).all()
    assert not arrays["pixel_values"][0, :, 28:].any()
    assert not arrays["pixel_values"][1, :, :, 28:].any()
    again = family.join([arrays, family.pixels([large])])
    assert again["image_sizes"].tolist() == [[28, 56], [84, 28], [84, 28]]
    np.testing.assert_array_equal(again["pixel_values"][1], again["pixel_values"][2])


def test_a_tower_that_the_config_leaves_out(folder: Make) -> None:
    """Mistral 3's own default, not that of the tower's class."""
    place = folder(vision_config=None)
    assert AutoConfig.from_pretrained(place).vision_config.patch_size == 14
    assert load_family(place).layout(28, 28).tokens == 2


def test_pixtral_12b(folder: Make) -> None:
    family = load_family(folder(**PIXTRAL_12B))
    assert family.settings == PixtralSettings()  # type: ignore[attr-defined]
    assert family.layout(640, 480).grid == (1, 30, 40)


@pytest.mark.parametrize(
    ("size", "most"),
    [
        ({"longest_edge": 700}, (700, 700)),
        ({"longest_edge": 700, "shortest_edge": 50}, (700, 700)),
        ({"height": 300, "width": 200}, (300, 200)),
        (300, (300, 300)),
    ],
)
def test_greatest_sides(folder: Make, size: Any, most: tuple[int, int]) -> None:
    """As the image processor reads them: it is asked, too."""
    place = folder({"size": size})
    settings = load_family(place).settings  # type: ignore[attr-defined]
    assert (settings.max_height, settings.max_width) == most
    theirs = pixtral.PixtralImageProcessorPil.from_pretrained(place)
    sizes = theirs(noise(900, 1100, 1), patch_size=28, return_tensors="np")["image_sizes"].tolist()
    _, rows, columns = load_family(place).layout(1100, 900).grid
    assert sizes == [[rows * 28, columns * 28]]


@pytest.mark.parametrize(
    ("processor", "named"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type"),
        ({"do_resize": False}, "do_resize"),
        ({"do_pad": False}, "do_pad"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"size": {"shortest_edge": 448}}, "size"),
        ({"size": {"longest_edge": 0}}, "size.longest_edge"),
        ({"size": {"longest_edge": 9, "height": 9, "width": 9}}, "size"),
    ],
)
def test_a_wrong_setting_is_named(folder: Make, processor: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json.*{named}"):
        load_family(folder(processor))


@pytest.mark.parametrize(
    "changes",
    [
        {"joint": {}},
        {"joint": JOINT | {"patch_size": 16}},
        {"joint": JOINT | {"spatial_merge_size": 1}},
        {"spatial_merge_size": 3},
        {"vision_config": TOWER | {"patch_size": 16}},
        {"vision_config": {"model_type": "pixtral"}},
        PIXTRAL_12B | {"joint": JOINT},
    ],
)
def test_patches_of_another_checkpoint_are_refused(folder: Make, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="patches of"):
        load_family(folder(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        PIXTRAL_12B | {"vision_config": {"model_type": "clip_vision_model", "patch_size": 16}},
        PIXTRAL_12B | {"vision_config": {"patch_size": 16}},
        PIXTRAL_12B | {"joint": {"patch_size": 16, "processor_class": "LlavaProcessor"}},
        PIXTRAL_12B | {"joint": {"patch_size": 16}, "processor": {"processor_class": None}},
    ],
)
def test_other_llavas_are_refused(folder: Make, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="llava checkpoint"):
        load_family(folder(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"ids": IDS | {"[IMG]": 11}},
        {"image_token_index": 11},
        {"image_token_id": 11},
        {"image_token_index": 10, "image_token_id": 11},
        {"ids": {"[IMG]": 10, "[IMG_BREAK]": 12}},
        {"joint": JOINT | {"image_end_token": "[OTHER]"}},
    ],
)
def test_another_tokenizer_is_refused(folder: Make, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="token"):
        load_family(folder(**changes))
