"""The GLM-V line: what is taken from a checkpoint's files, and grids at sizes too large to be processed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil, smart_resize
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil

from filmroll.errors import CheckpointError, LayoutError
from filmroll.families import load_family
from filmroll.families.base import Placeholders
from filmroll.families.glm4v import TOKEN_DEFAULTS, TOKENS, Glm4v, Glm4vSettings
from tests.families.cases.glm4v import CASES
from tests.families.pictures import EDGES, sizes

PLACEHOLDERS = Placeholders(image=1, unsampled=(1,), texts=())
GLM_4_5V = {"size": {"shortest_edge": 12544, "longest_edge": 47040000}}


def test_golden_names(model_folder: Any) -> None:
    """A change here makes every stored descriptor unreadable: it must be meant."""
    family = load_family(model_folder(GLM_4_5V, model_type="glm4v_moe"))
    assert family.fingerprint == "76b6418ec9eeea9593b71c2d70c3894a"
    assert family.recipe == "29d5cf2d4d2e4aa46f97458fded0d80e"


@pytest.mark.parametrize(
    ("height", "width", "target", "tokens"),
    [
        (16, 16, (84, 84), 9),
        (48, 80, (84, 112), 12),
        (720, 1280, (728, 1288), 1196),
        (1080, 1920, (1092, 1932), 2691),
        (5000, 5000, (4844, 4844), 29929),
        (20, 1000, (28, 1400), 50),
        (1, 200, (28, 5600), 200),
    ],
)
def test_golden_layouts(model_folder: Any, height: int, width: int, target: tuple[int, int], tokens: int) -> None:
    layout = load_family(model_folder(GLM_4_5V, model_type="glm4v_moe")).layout(width, height)
    assert (layout.grid, layout.tokens) == ((1, target[0] // 14, target[1] // 14), tokens)


@pytest.mark.parametrize("model_type", TOKEN_DEFAULTS)
def test_every_model_type(model_folder: Any, model_type: str) -> None:
    folder = model_folder({}, model_type=model_type)
    family = load_family(folder)
    config = AutoConfig.from_pretrained(folder)
    assert isinstance(family, Glm4v)
    assert family.placeholders.image == config.image_token_id
    assert family.placeholders.unsampled == tuple(getattr(config, key) for key in TOKENS)
    assert family.renderer is None


@pytest.mark.parametrize("theirs", [Glm4vImageProcessorPil(), Glm46VImageProcessorPil()])
def test_the_class_defaults_are_those_of_transformers(theirs: Any) -> None:
    ours = Glm4vSettings()
    for name in ("patch_size", "merge_size", "temporal_patch_size", "do_rescale", "rescale_factor", "do_normalize"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert (ours.min_pixels, ours.max_pixels) == (theirs.size["shortest_edge"], theirs.size["longest_edge"])
    assert (ours.image_mean, ours.image_std) == (tuple(theirs.image_mean), tuple(theirs.image_std))
    assert ours.resample == int(theirs.resample)


@pytest.mark.parametrize(
    ("patch", "merge", "frames", "low", "high"),
    [(14, 2, 2, 112 * 112, 28 * 28 * 15000), (14, 2, 1, 12544, 100_000), (8, 4, 3, 3000, 90_000)],
)
def test_grids_are_those_of_smart_resize(patch: int, merge: int, frames: int, low: int, high: int) -> None:
    numbers = Glm4vSettings(
        patch_size=patch, merge_size=merge, temporal_patch_size=frames, min_pixels=low, max_pixels=high
    )
    family, refused = Glm4v(numbers, placeholders=PLACEHOLDERS), 0
    for height, width in [*EDGES, *sizes(CASES[0], 1000)]:
        try:
            tall, wide = smart_resize(frames, height, width, frames, patch * merge, low, high)
        except ValueError:
            refused += 1
            with pytest.raises(LayoutError, match="GLM-V"):
                family.layout(width, height)
            continue
        layout = family.layout(width, height)
        assert layout.grid == (1, tall // patch, wide // patch), (height, width)
        assert family.cost(layout) == layout.tokens * merge**2
    assert 0 < refused < 200


@pytest.mark.parametrize(
    "keys", [{}, {"min_pixels": 7, "max_pixels": 8}, {"size": {"shortest_edge": 99999, "longest_edge": 200000}}]
)
def test_bounds_are_in_size_alone(model_folder: Any, keys: dict[str, Any]) -> None:
    """Unlike Qwen's, the image processor does not look at bounds at the top level."""
    folder = model_folder(keys, model_type="glm4v")
    theirs = Glm4vImageProcessorPil.from_pretrained(folder)
    grid = theirs(np.zeros((90, 150, 3), np.uint8), return_tensors="np")["image_grid_thw"]
    assert load_family(folder).layout(150, 90).payload["image_grid_thw"] == grid.tolist()


@pytest.mark.parametrize(
    ("processor", "named"),
    [
        ({"image_processor_type": "Qwen2VLImageProcessor"}, "image_processor_type"),
        ({"do_resize": False}, "do_resize"),
        ({"size": {"longest_edge": 9000}}, "size.shortest_edge"),
        ({"size": {"shortest_edge": 9000, "longest_edge": 0}}, "size.longest_edge"),
        ({"size": 9000}, "size"),
    ],
)
def test_a_wrong_setting_is_named(model_folder: Any, processor: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json.*{named}"):
        load_family(model_folder(processor, model_type="glm4v"))


def test_one_id_for_two_tokens_is_refused(model_folder: Any) -> None:
    with pytest.raises(CheckpointError, match="same id"):
        load_family(model_folder({}, model_type="glm4v", image_token_id=151344))
