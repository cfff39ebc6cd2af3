"""Gemma 4: golden numbers, and what is taken from a checkpoint's files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filmroll.errors import CheckpointError, LayoutError
from filmroll.families import load_family
from filmroll.families.gemma4 import TOKENS, UNIFIED, Gemma4
from filmroll.image import ImageRef

GOLDEN_FINGERPRINT = "638184a04988db4219bca67273d183ed"
GOLDEN_RECIPE = "59ac22615a53149b6d82da814a318247"
Make = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Make:
    """Writes what the family reads of a checkpoint, as it is released."""

    def make(processor: dict[str, Any] | None = None, model_type: str = "gemma4", **config: Any) -> Path:
        added = [{"id": number, "content": spelling} for spelling, number in TOKENS.values()]
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **config}))
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": processor or {}}))
        (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
        return tmp_path

    return make


def test_golden_names(folder: Make) -> None:
    """A change here makes every stored descriptor unreadable: it must be meant."""
    family = load_family(folder())
    assert (family.fingerprint, family.recipe) == (GOLDEN_FINGERPRINT, GOLDEN_RECIPE)


@pytest.mark.parametrize(
    ("height", "width", "grid", "tokens"),
    [
        (1, 1, (1, 48, 48), 258),
        (480, 640, (1, 42, 57), 268),
        (1080, 1920, (1, 36, 66), 266),
        (768, 768, (1, 48, 48), 258),
        (10, 10000, (1, 3, 840), 282),
        (3, 100, (1, 6, 288), 194),
        (2000, 1, (1, 840, 3), 282),
    ],
)
def test_golden_layouts(folder: Make, height: int, width: int, grid: tuple[int, int, int], tokens: int) -> None:
    layout = load_family(folder()).layout(width, height)
    assert (layout.grid, layout.tokens, layout.features) == (grid, tokens, tokens - 2)
    unified = load_family(folder(model_type=UNIFIED)).layout(width, height)
    assert (unified.grid, unified.tokens) == ((1, grid[1] // 3, grid[2] // 3), tokens)


def test_positions_are_columns_and_rows_and_padding_is_apart(folder: Make) -> None:
    arrays = load_family(folder()).pixels([np.full((96, 48, 3), 255, np.uint8)])
    positions, count = arrays["image_position_ids"][0], 69 * 33
    assert arrays["pixel_values"].shape == (1, 2520, 768)
    assert positions[:34].tolist() == [*[[column, 0] for column in range(33)], [0, 1]]
    assert positions[count - 1].tolist() == [32, 68]
    assert (positions[count:] == -1).all()
    assert (arrays["pixel_values"][0, :count] == 1).all()
    assert not arrays["pixel_values"][0, count:].any()


def test_the_placeholder_begins_and_ends(folder: Make) -> None:
    family = load_family(folder())
    tokens = family.expansion(family.describe(ImageRef("file:///a.png", "ab" * 32, "image/png", 100, 3, 1)))
    assert tokens.tolist() == [255999, *[258880] * 192, 258882]


def test_unified_models_have_one_processor(folder: Make) -> None:
    assert load_family(folder(model_type=UNIFIED)).settings.backend == "torchvision"  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="no image processor for pil"):
        load_family(folder(model_type=UNIFIED), backend="pil")


@pytest.mark.parametrize(
    ("processor", "named"),
    [
        ({"image_processor_type": "SiglipImageProcessor"}, "image_processor_type"),
        ({"do_resize": False}, "do_resize"),
        ({"do_normalize": True}, "do_normalize"),
        ({"max_soft_tokens": 100}, "max_soft_tokens"),
        ({"pooling_kernel_size": 0}, "pooling_kernel_size"),
        ({"pooling_kernel_size": 2}, "vision_config.pooling_kernel_size"),
        ({"patch_size": 14}, "vision_config.patch_size"),
    ],
)
def test_a_wrong_setting_is_named(folder: Make, processor: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_family(folder(processor))


def test_a_budget_beyond_the_models_positions_is_refused(folder: Make) -> None:
    processor = {"max_soft_tokens": 1120}
    assert load_family(folder(processor, vision_config={"position_embedding_size": 3360}))
    with pytest.raises(CheckpointError, match="position_embedding_size"):
        load_family(folder(processor, vision_config={"position_embedding_size": 3359}))
    with pytest.raises(CheckpointError, match="mm_posemb_size"):
        load_family(folder(processor, UNIFIED, vision_config={"mm_posemb_size": 1119}))


@pytest.mark.parametrize("key", ["boi_token_id", "image_token_id", "eoi_token_id"])
def test_a_config_of_another_tokenizer_is_refused(folder: Make, key: str) -> None:
    with pytest.raises(CheckpointError, match=key):
        load_family(folder(**{key: 7}))


def test_no_side_means_no_layout(folder: Make) -> None:
    with pytest.raises(LayoutError):
        load_family(folder()).layout(0, 10)


def test_vision_tokens_are_never_sampled(folder: Make) -> None:
    placeholders = load_family(folder()).placeholders
    assert set(placeholders.unsampled) == {number for _, number in TOKENS.values()}
    assert isinstance(load_family(folder()), Gemma4)
    assert placeholders.pad == 258880
