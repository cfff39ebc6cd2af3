"""InternVL: golden numbers, tiles at sizes too large to be processed, and what is taken from a checkpoint's files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.got_ocr2 import image_processing_pil_got_ocr2 as got_ocr2

from filmroll.errors import CheckpointError
from filmroll.families import load_family
from filmroll.families.base import Placeholders
from filmroll.families.internvl import IMAGE_TOKEN_ID, TEXTS, InternVL, InternVLSettings
from filmroll.image import ImageRef
from filmroll.pixels.resize import resize
from tests.families.cases.internvl import CASES
from tests.families.pictures import EDGES, noise, sizes

GOLDEN_FINGERPRINT = "f56df7342ae86ec6057553c5d12caba8"
GOLDEN_RECIPE = "6c71275daec05340cac786fd427b8065"
IDS = {"<IMG_CONTEXT>": IMAGE_TOKEN_ID, "<img>": 151665, "</img>": 151666}
RELEASED: dict[str, Any] = {
    "image_processor_type": "GotOcr2ImageProcessorFast",
    "processor_class": "InternVLProcessor",
    "crop_size": None,
    "crop_to_patches": False,
    "do_center_crop": None,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "max_patches": 12,
    "min_patches": 1,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 448, "width": 448},
}
Make = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Make:
    """Writes what the family reads of a checkpoint, as it is released."""

    def make(
        processor: dict[str, Any] | None = None, joint: dict[str, Any] | None = None, ids: Any = None, **config: Any
    ) -> Path:
        files = {
            "config": {"model_type": "internvl", **config},
            "preprocessor_config": RELEASED | (processor or {}),
            "processor_config": {"image_seq_length": 256} if joint is None else joint,
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
    ("width", "height", "grid", "tiles"),
    [
        (448, 448, (1, 1, 1), 1),
        (640, 480, (1, 3, 4), 13),
        (1920, 1080, (1, 2, 4), 9),
        (4000, 3000, (1, 3, 4), 13),
        (1, 1, (1, 1, 1), 1),
        (5000, 1, (1, 1, 12), 13),
        (1, 5000, (1, 12, 1), 13),
    ],
)
def test_golden_layouts(folder: Make, width: int, height: int, grid: tuple[int, int, int], tiles: int) -> None:
    family = load_family(folder())
    layout = family.layout(width, height)
    assert (layout.grid, layout.payload) == (grid, {"tile_grid": [list(grid)]})
    assert (layout.features, layout.tokens) == (256 * tiles, 256 * tiles + 2)
    assert family.cost(layout) == 1024 * tiles


@pytest.mark.parametrize(("least", "most"), [(1, 12), (1, 6), (4, 9), (2, 40), (7, 3)])
def test_tiles_are_those_of_transformers(least: int, most: int) -> None:
    numbers = InternVLSettings(height=448, width=448, min_patches=least, max_patches=most)
    placeholders = Placeholders(image=1, unsampled=(1,), texts=())
    family = InternVL(numbers, placeholders=placeholders, ends=(2, 3), tile_patches=1024)
    half_of_nine = (1008, 896)
    for height, width in [*EDGES, half_of_nine, *sizes(CASES[0], 1000)]:
        columns, rows = got_ocr2.get_optimal_tiled_canvas((height, width), (448, 448), least, most)
        assert family.layout(width, height).grid == (1, rows, columns), (height, width)


def test_the_class_defaults_are_those_of_transformers() -> None:
    ours, theirs = InternVLSettings(), got_ocr2.GotOcr2ImageProcessorPil()
    for name in ("min_patches", "max_patches", "do_rescale", "rescale_factor", "do_normalize"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert (ours.height, ours.width) == (theirs.size["height"], theirs.size["width"])
    assert (ours.image_mean, ours.image_std) == (tuple(theirs.image_mean), tuple(theirs.image_std))
    assert ours.resample == int(theirs.resample)


def test_tiles_are_read_like_a_page_and_the_thumbnail_comes_last(folder: Make) -> None:
    rgb = noise(96, 64, 1)
    plain = {"do_normalize": False, "size": {"height": 32, "width": 32}}
    tower = {"image_size": [32, 32], "patch_size": [8, 8]}
    arrays = load_family(folder(plain, {"image_seq_length": 4}, vision_config=tower)).pixels([rgb])
    assert arrays["num_patches"].tolist() == [7]
    tiles = np.rint(arrays["pixel_values"] * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(tiles[1], rgb[:32, 32:64])
    np.testing.assert_array_equal(tiles[4], rgb[64:, :32])
    np.testing.assert_array_equal(tiles[6], resize(rgb, 32, 32, Image.Resampling.BICUBIC))


def test_tiles_need_not_be_square(folder: Make) -> None:
    rgb, size = noise(90, 150, 1), {"height": 32, "width": 16}
    place = folder({"size": size}, {"image_seq_length": 2}, vision_config={"image_size": [32, 16], "patch_size": 8})
    theirs = got_ocr2.GotOcr2ImageProcessorPil.from_pretrained(place)(rgb, crop_to_patches=True, return_tensors="np")
    np.testing.assert_array_equal(load_family(place).pixels([rgb])["pixel_values"], theirs["pixel_values"])


def test_the_placeholder_begins_and_ends(folder: Make) -> None:
    family = load_family(folder())
    tokens = family.expansion(family.describe(ImageRef("file:///a.png", "ab" * 32, "image/png", 448, 448, 1)))
    assert tokens.tolist() == [IDS["<img>"], *[IMAGE_TOKEN_ID] * 256, IDS["</img>"]]
    assert set(family.placeholders.unsampled) == set(IDS.values())
    assert family.placeholders.texts == TEXTS
    assert family.placeholders.pad == IMAGE_TOKEN_ID


@pytest.mark.parametrize(
    ("processor", "named"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type"),
        ({"do_resize": False}, "do_resize"),
        ({"size": {"shortest_edge": 448}}, "size"),
        ({"max_patches": 0}, "max_patches"),
        ({"min_patches": 1.5}, "min_patches"),
    ],
)
def test_a_wrong_setting_is_named(folder: Make, processor: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json.*{named}"):
        load_family(folder(processor))


@pytest.mark.parametrize(
    ("processor", "joint", "config"),
    [
        ({"size": {"height": 384, "width": 384}}, {}, {}),
        ({}, {"image_seq_length": 255}, {}),
        ({}, {}, {"downsample_ratio": 0.25}),
        ({}, {}, {"vision_config": {"image_size": [448, 336]}}),
        ({}, {}, {"vision_config": {"patch_size": 28}}),
    ],
)
def test_a_tower_of_another_checkpoint_is_refused(folder: Make, processor: Any, joint: Any, config: Any) -> None:
    assert load_family(folder({}, {}, vision_config={"image_size": 448, "patch_size": [14, 14]}))
    with pytest.raises(CheckpointError, match="vision tower"):
        load_family(folder(processor, joint, **config))


@pytest.mark.parametrize("ids", [IDS | {"<IMG_CONTEXT>": 7}, {"<IMG_CONTEXT>": IMAGE_TOKEN_ID, "<img>": 151665}])
def test_another_tokenizer_is_refused(folder: Make, ids: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match="token"):
        load_family(folder(ids=ids))
