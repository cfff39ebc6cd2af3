"""LLaVA-OneVision: golden numbers, and what is taken from a checkpoint's files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import LlavaOnevisionConfig
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from filmroll.errors import CheckpointError
from filmroll.families import load_family
from filmroll.families.llava_onevision import PROCESSORS, LlavaOnevisionSettings

GOLDEN_FINGERPRINT = "539510d07b23d5c24083a5b9a64403d3"
GOLDEN_RECIPE = "fb4b33ff11b666e9a2cabeb0cb12e786"
TOWER = {"image_size": 384, "patch_size": 14}
Make = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Make:
    """Writes what the family reads of a checkpoint, as it is released."""

    def make(processor: dict[str, Any] | None = None, joint: dict[str, Any] | None = None, **config: Any) -> Path:
        whole = {"model_type": "llava_onevision", "vision_config": TOWER, **config}
        text = {"num_image_tokens": 729, "vision_feature_select_strategy": "full", **(joint or {})}
        (tmp_path / "config.json").write_text(json.dumps(whole))
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor or {}))
        (tmp_path / "processor_config.json").write_text(json.dumps(text))
        added = [{"id": 151646, "content": "<image>"}]
        (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
        return tmp_path

    return make


def test_golden_names(folder: Make) -> None:
    """A change here makes every stored descriptor unreadable: it must be meant."""
    family = load_family(folder())
    assert (family.fingerprint, family.recipe) == (GOLDEN_FINGERPRINT, GOLDEN_RECIPE)


@pytest.mark.parametrize(
    ("height", "width", "tiles", "tokens"),
    [
        (1, 1, (1, 1), 729 + 27 * 28),
        (384, 384, (1, 1), 729 + 27 * 28),
        (480, 640, (2, 2), 729 + 40 * 55),
        (1080, 1920, (3, 5), 729 + 60 * 109),
        (2304, 2304, (6, 6), 729 + 81 * 82),
        (1, 2000, (1, 6), 729 + 1 * 163),
        (2000, 1, (6, 1), 729 + 162 * 2),
    ],
)
def test_golden_layouts(folder: Make, height: int, width: int, tiles: tuple[int, int], tokens: int) -> None:
    """The overview's features, and rows of what is left of the tiles', each with a new line."""
    family = load_family(folder())
    layout = family.layout(width, height)
    assert (layout.grid, layout.tokens, layout.features) == ((1, *tiles), tokens, tokens)
    assert family.cost(layout) == (1 + tiles[0] * tiles[1]) * 729


def test_the_class_defaults_are_those_of_transformers() -> None:
    theirs, ours = LlavaOnevisionImageProcessorPil(), LlavaOnevisionSettings()
    assert [list(size) for size in ours.pinpoints] == theirs.image_grid_pinpoints
    assert [list(size) for size in ours.pinpoints] == LlavaOnevisionConfig().image_grid_pinpoints
    assert (ours.image_mean, ours.image_std) == (tuple(theirs.image_mean), tuple(theirs.image_std))
    assert (ours.side, ours.resample) == (theirs.size["height"], int(theirs.resample))


def test_the_released_tiles_are_those_of_the_processor(folder: Make) -> None:
    pictures = [np.random.default_rng(0).integers(0, 256, size, np.uint8) for size in ((300, 500, 3), (400, 90, 3))]
    ours = load_family(folder()).pixels(pictures)
    theirs = LlavaOnevisionImageProcessorPil()([Image.fromarray(one) for one in pictures], return_tensors="np")
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


def test_pictures_of_one_prompt_have_tiles_too(folder: Make) -> None:
    """As in a list of images; in lists of lists the processor would show each as one padded square."""
    pictures = [Image.new("RGB", (800, 400)), Image.new("RGB", (400, 400))]
    ours, theirs = load_family(folder()).pixels(pictures), LlavaOnevisionImageProcessorPil()
    assert ours["pixel_values"].shape == theirs(pictures, return_tensors="np")["pixel_values"].shape
    assert theirs([pictures], return_tensors="np")["pixel_values"].shape == (2, 1, 3, 384, 384)
    assert ours["batch_num_images"].tolist() == [1, 1]


@pytest.mark.parametrize("kind", PROCESSORS)
def test_every_processor_means_the_same(folder: Make, kind: str) -> None:
    assert load_family(folder({"image_processor_type": kind})).recipe == GOLDEN_RECIPE


@pytest.mark.parametrize(
    ("processor", "named"),
    [
        ({"image_processor_type": "LlavaNextImageProcessor"}, "image_processor_type"),
        ({"do_resize": False}, "do_resize"),
        ({"do_pad": False}, "do_pad"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"crop_size": {"height": 384, "width": 384}}, "crop_size"),
        ({"size": {"shortest_edge": 384}}, "size.height"),
        ({"size": {"height": 384, "width": 380}}, "384x380"),
        ({"size": {"height": 336, "width": 336}}, "side of a tile"),
        ({"image_grid_pinpoints": "(1x1),...,(6x6)"}, "image_grid_pinpoints"),
        ({"image_grid_pinpoints": []}, "image_grid_pinpoints"),
        ({"image_grid_pinpoints": [[384, 384, 384]]}, "image_grid_pinpoints"),
        ({"image_grid_pinpoints": [[384, 0]]}, "image_grid_pinpoints"),
        ({"image_grid_pinpoints": [[384, 384]]}, "image_grid_pinpoints"),
    ],
)
def test_a_wrong_setting_is_named(folder: Make, processor: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_family(folder(processor))


def test_sizes_that_are_no_whole_tiles_are_refused(folder: Make) -> None:
    sizes = {"image_grid_pinpoints": [[384, 400]]}
    with pytest.raises(CheckpointError, match="no multiples"):
        load_family(folder(sizes, **sizes))


@pytest.mark.parametrize(
    ("joint", "named"),
    [
        ({"num_image_tokens": None}, "num_image_tokens"),
        ({"num_image_tokens": 730}, "number of a tile's features"),
        ({"vision_aspect_ratio": "anyres_max_4"}, "vision_aspect_ratio"),
        ({"vision_aspect_ratio": "pad"}, "vision_aspect_ratio"),
        ({"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy"),
    ],
)
def test_what_the_processor_of_text_says_must_be_what_the_model_does(
    folder: Make, joint: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_family(folder(joint=joint))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"vision_config": {**TOWER, "patch_size": 16}}, "number of a tile's features"),
        ({"vision_config": {"patch_size": 14}}, "image_size"),
        ({"image_grid_pinpoints": [[384, 384]]}, "image_grid_pinpoints"),
        ({"vision_aspect_ratio": "anyres_max_4"}, "vision_aspect_ratio"),
        ({"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy"),
        ({"image_token_index": 7}, "image_token_index"),
        ({"video_token_index": 151646}, "same id"),
    ],
)
def test_another_model_is_refused(folder: Make, config: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_family(folder(**config))
