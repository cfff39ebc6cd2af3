"""The Qwen-VL line: golden numbers that other systems fix, and what is taken from a checkpoint's files."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from renderers.configs import config_from_name
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from filmroll.errors import CheckpointError, LayoutError
from filmroll.families import load_family
from filmroll.families.base import Placeholders
from filmroll.families.qwen_vl import TOKEN_DEFAULTS, TOKENS, QwenVL, QwenVLSettings

PLACEHOLDERS = Placeholders(image=1, unsampled=(1,), texts=())
GOLDEN_FINGERPRINT = "c5ece06d40951692b7035ec4dd381742"
GOLDEN_RECIPE = "ffedfa184dff05e4008a25193e2fc3cf"


def test_golden_fingerprint(model_folder: Any) -> None:
    assert load_family(model_folder()).fingerprint == GOLDEN_FINGERPRINT


def test_golden_recipe(model_folder: Any) -> None:
    """A change here makes every stored descriptor unreadable: it must be meant."""
    assert load_family(model_folder()).recipe == GOLDEN_RECIPE


@pytest.mark.parametrize(
    ("height", "width", "target", "tokens"),
    [
        (16, 16, (256, 256), 64),
        (48, 80, (224, 352), 77),
        (720, 1280, (704, 1280), 880),
        (1080, 1920, (1088, 1920), 2040),
        (5000, 5000, (4096, 4096), 16384),
        (20, 1000, (64, 1824), 114),
    ],
)
def test_golden_layouts(model_folder: Any, height: int, width: int, target: tuple[int, int], tokens: int) -> None:
    layout = load_family(model_folder()).layout(width, height)
    assert layout.grid == (1, target[0] // 16, target[1] // 16)
    assert layout.tokens == tokens


BOUNDS = [
    (14, 2, 56 * 56, 28 * 28 * 1280),
    (16, 2, 65536, 16777216),
    (14, 2, 50176, 50176),
    (16, 2, 4 * 32 * 32 + 1, 16 * 32 * 32 - 1),
    (16, 2, 1, 4 * 32 * 32),
    (8, 4, 3000, 90000),
]


@st.composite
def sizes(draw: st.DrawFn, unit: int, areas: tuple[int, int]) -> tuple[int, int]:
    """(height, width): ordinary ones, and those where rounding, the bounds or the ratio turn over."""
    any_side = st.integers(1, 6000)
    near_multiple = st.builds(
        lambda count, off: max(1, count * unit // 2 + off), st.integers(1, 200), st.integers(-1, 1)
    )
    height = draw(st.one_of(any_side, near_multiple, st.integers(1, 40)))
    near_bound = st.builds(
        lambda area, off: max(1, math.isqrt(area) ** 2 // height + off), st.sampled_from(areas), st.integers(-3, 3)
    )
    near_ratio = st.integers(-1, 1).map(lambda off: height * 200 + off)
    width = draw(st.one_of(any_side, near_multiple, near_bound, near_ratio))
    return (height, width) if draw(st.booleans()) else (width, height)


@pytest.mark.parametrize(("patch", "merge", "low", "high"), BOUNDS)
def test_grids_are_those_of_smart_resize(patch: int, merge: int, low: int, high: int) -> None:
    """Which side is which, at sizes that cost too much to be processed."""
    unit = patch * merge
    numbers = QwenVLSettings(patch_size=patch, merge_size=merge, min_pixels=low, max_pixels=high)
    family = QwenVL(numbers, placeholders=PLACEHOLDERS)

    @settings(max_examples=200, deadline=None)
    @given(sizes(unit, (low, high)))
    @example((3 * unit // 2, 5 * unit // 2))
    def law(size: tuple[int, int]) -> None:
        height, width = size
        try:
            tall, wide = smart_resize(height, width, unit, low, high)
        except ValueError:
            with pytest.raises(LayoutError):
                family.layout(width, height)
            return
        layout = family.layout(width, height)
        assert layout.grid == (1, tall // patch, wide // patch)
        assert layout.payload == {"image_grid_thw": [list(layout.grid)]}
        assert family.cost(layout) == layout.tokens * merge**2 == tall * wide // patch**2

    law()


def test_the_class_defaults_are_those_of_transformers() -> None:
    theirs, ours = Qwen2VLImageProcessorPil(), QwenVLSettings()
    for name in ("patch_size", "merge_size", "temporal_patch_size", "do_rescale", "rescale_factor", "do_normalize"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert (ours.min_pixels, ours.max_pixels) == (theirs.size["shortest_edge"], theirs.size["longest_edge"])
    assert (ours.image_mean, ours.image_std) == (tuple(theirs.image_mean), tuple(theirs.image_std))
    assert ours.resample == int(theirs.resample)


@pytest.mark.parametrize(
    "change", [{"resample": 2}, {"do_normalize": False}, {"patch_size": 16}, {"max_pixels": 10**6}]
)
def test_the_fingerprint_names_what_the_layout_depends_on_and_no_more(change: dict[str, Any]) -> None:
    plain = QwenVL(QwenVLSettings(), placeholders=PLACEHOLDERS)
    changed = QwenVL(replace(QwenVLSettings(), **change), placeholders=PLACEHOLDERS)
    assert plain.recipe != changed.recipe
    assert (plain.fingerprint != changed.fingerprint) == bool({"patch_size", "max_pixels"} & set(change))


PROCESSORS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "top-level bounds": {"min_pixels": 3136, "max_pixels": 50176},
    "null bounds": {"min_pixels": None, "max_pixels": None},
    "null size": {"size": None, "patch_size": 16},
    "null bounds, size": {
        "min_pixels": None,
        "max_pixels": None,
        "size": {"shortest_edge": 4096, "longest_edge": 9000},
    },
    "top-level before size": {"max_pixels": 20000, "size": {"shortest_edge": 4096, "longest_edge": 9000}},
    "half a size, other half at the top": {"min_pixels": 4096, "size": {"longest_edge": 9000}},
    "half a size": {"size": {"longest_edge": 9000}},
    "half a size, null": {"size": {"longest_edge": 9000, "shortest_edge": None}},
    "size by old names": {
        "min_pixels": 4096,
        "max_pixels": 9000,
        "size": {"min_pixels": 1, "max_pixels": 2},
    },
    "no rescaling": {"do_rescale": False},
    "no normalizing": {"do_normalize": False},
    "levels as they are": {"do_rescale": False, "do_normalize": False},
    "bilinear": {"resample": 2},
    "another factor": {"rescale_factor": 1 / 127.5},
    "one mean for all": {"image_mean": 0.5, "image_std": 0.25},
    "fast": {"image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": 16, "merge_size": 2},
}


@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
def test_files_mean_what_they_mean_to_transformers(model_folder: Any, processor: dict[str, Any]) -> None:
    folder = model_folder(processor)
    rgb = np.random.default_rng(0).integers(0, 256, (150, 90, 3), np.uint8)
    try:
        expected = Qwen2VLImageProcessorPil.from_pretrained(folder)([Image.fromarray(rgb)], return_tensors="np")
    except (ValueError, TypeError):
        with pytest.raises(CheckpointError, match="size"):
            load_family(folder)
        return
    arrays = load_family(folder).pixels([rgb])
    np.testing.assert_array_equal(arrays["image_grid_thw"], expected["image_grid_thw"])
    np.testing.assert_allclose(arrays["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)


def test_the_section_of_processor_config_comes_first(model_folder: Any) -> None:
    folder = model_folder({"patch_size": 14})
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": {"patch_size": 16}}))
    assert load_family(folder).settings.patch_size == 16  # type: ignore[attr-defined]


def test_a_processor_config_without_the_section_is_passed_over(model_folder: Any) -> None:
    folder = model_folder({"patch_size": 14})
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen3VLProcessor"}))
    assert load_family(folder).settings.patch_size == 14  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("processor", "named"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type"),
        ({"do_resize": False}, "do_resize"),
        ({"do_resize": "yes"}, "do_resize"),
        ({"resample": 9}, "resample"),
        ({"patch_size": 0}, "patch_size"),
        ({"patch_size": 16.0}, "patch_size"),
        ({"patch_size": True}, "patch_size"),
        ({"min_pixels": -1}, "min_pixels"),
        ({"size": [1, 2]}, "size"),
        ({"size": {"shortest_edge": "small", "longest_edge": 9000}}, "size.shortest_edge"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std"),
        ({"image_std": [0.5, 0.5, float("nan")]}, "image_std"),
        ({"rescale_factor": "1/255"}, "rescale_factor"),
    ],
)
def test_a_wrong_setting_is_named(model_folder: Any, processor: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json.*{named}") as caught:
        load_family(model_folder(processor))
    assert caught.value.remedy


@pytest.mark.parametrize("key", ["patch_size", "spatial_merge_size", "temporal_patch_size"])
def test_a_vision_tower_that_cuts_otherwise_is_refused(model_folder: Any, key: str) -> None:
    with pytest.raises(CheckpointError, match=key):
        load_family(model_folder(vision_config={key: 7}))
    assert load_family(model_folder(vision_config={"patch_size": [16, 16]}))


@pytest.mark.parametrize("model_type", TOKEN_DEFAULTS)
def test_every_model_type(model_folder: Any, model_type: str) -> None:
    folder = model_folder(model_type=model_type)
    family = load_family(folder)
    config = AutoConfig.from_pretrained(folder)
    assert isinstance(family, QwenVL)
    assert family.forward.marks == "mm_token_type_ids"
    assert family.placeholders.image == config.image_token_id
    assert family.placeholders.unsampled == tuple(getattr(config, key) for key in TOKENS)
    assert family.renderer is None or config_from_name(family.renderer).name == family.renderer


@pytest.mark.parametrize("model_type", TOKEN_DEFAULTS)
def test_every_forward_takes_token_types(model_type: str) -> None:
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(AutoConfig.for_model(model_type))]
    assert "mm_token_type_ids" in inspect.signature(model.forward).parameters


def test_placeholders_come_from_the_config(model_folder: Any) -> None:
    ids = dict(zip(TOKENS, (5, 6, 7, 8), strict=True))
    placeholders = load_family(model_folder(**ids)).placeholders
    assert (placeholders.image, placeholders.unsampled) == (5, (5, 6, 7, 8))
    assert placeholders.texts == ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")


@pytest.mark.parametrize(
    ("ids", "named"), [({"image_token_id": "pad"}, "image_token_id"), ({"image_token_id": 151656}, "same id")]
)
def test_wrong_placeholders_are_refused(model_folder: Any, ids: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_family(model_folder(**ids))


@pytest.mark.parametrize(
    ("model_type", "template", "renderer"),
    [
        ("qwen2_vl", "", None),
        ("qwen2_5_vl", "", None),
        ("qwen3_vl", "", "qwen3-vl"),
        ("qwen3_vl_moe", "", "qwen3-vl"),
        ("qwen3_5", "{{ enable_thinking }}", "qwen3.5"),
        ("qwen3_5_moe", "{{ preserve_thinking }}", "qwen3.6"),
        ("qwen3_5", "{{ preserve_thinking }}{{ reasoning_effort }}", "qwen3.8"),
    ],
)
@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_the_renderer_follows_model_type_and_template(
    model_folder: Any, model_type: str, template: str, renderer: str | None, file: str
) -> None:
    folder: Path = model_folder(model_type=model_type)
    text = template if file.endswith(".jinja") else json.dumps({"chat_template": template})
    (folder / file).write_text(text)
    assert load_family(folder).renderer == renderer
