"""Kimi K2.5: golden numbers, the released processor, and what is taken from a checkpoint's files."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from renderers.configs import config_from_name
from transformers import AutoConfig

from filmroll.errors import CheckpointError, ConfigError
from filmroll.families import load_family
from filmroll.families.base import Placeholders
from filmroll.families.kimi_k25 import TOKENS, KimiK25, KimiSettings
from filmroll.image import ImageRef
from filmroll.wire.descriptor import descriptor_json
from tests.families.pictures import noise

GOLDEN_FINGERPRINT = "63a3419b34b4463f1ea8d7ece5232ad1"
GOLDEN_RECIPES = {"pil": "059fb02c671e4a5ec21f75934b3385f4", "torchvision": "8a9b9082c443fee52d51b1921cdf52f1"}
RELEASED: dict[str, Any] = {
    "auto_map": {"AutoImageProcessor": "kimi_k25_vision_processing.KimiK25VisionProcessor"},
    "media_proc_cfg": {
        "in_patch_limit": 16384,
        "patch_size": 14,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "merge_kernel_size": 2,
        "fixed_output_tokens": None,
        "patch_limit_on_one_side": 512,
        "in_patch_limit_each_frame": 4096,
        "in_patch_limit_video": None,
        "sample_fps": 2.0,
        "temporal_merge_kernel_size": 4,
        "timestamp_mode": "hh:mm:ss.fff",
    },
}
NATIVE: dict[str, Any] = {"image_processor_type": "Kimi_K25ImageProcessor"}
PLACEHOLDERS = Placeholders(image=1, unsampled=(1,), texts=())


def released(**settings: Any) -> dict[str, Any]:
    return {**RELEASED, "media_proc_cfg": RELEASED["media_proc_cfg"] | settings}


@pytest.fixture
def load(model_folder: Any) -> Any:
    def load(processor: dict[str, Any], backend: Any = None, **config: Any) -> Any:
        return load_family(model_folder(processor, model_type="kimi_k25", **config), backend=backend)

    return load


@pytest.mark.parametrize("processor", [RELEASED, NATIVE], ids=["released", "native"])
def test_golden_fingerprint(load: Any, processor: dict[str, Any]) -> None:
    assert load(processor).fingerprint == GOLDEN_FINGERPRINT


@pytest.mark.parametrize(("processor", "backend"), [(RELEASED, "pil"), (NATIVE, "torchvision")])
def test_golden_recipe(load: Any, processor: dict[str, Any], backend: str) -> None:
    """A change here makes every stored descriptor unreadable: it must be meant. The two resize differently."""
    assert load(processor).recipe == GOLDEN_RECIPES[backend]
    assert load(RELEASED, backend).recipe == load(NATIVE, backend).recipe == GOLDEN_RECIPES[backend]


@pytest.mark.parametrize("processor", [RELEASED, NATIVE], ids=["released", "native"])
@pytest.mark.parametrize(
    ("width", "height", "grid", "tokens"),
    [
        (640, 480, (1, 36, 46), 414),
        (1920, 1080, (1, 78, 138), 2691),
        (4000, 3000, (1, 112, 150), 4200),
        (1024, 1024, (1, 74, 74), 1369),
        (1, 1, (1, 2, 2), 1),
        (7169, 1, (1, 2, 512), 256),
    ],
)
def test_golden_layouts(
    load: Any, processor: dict[str, Any], width: int, height: int, grid: tuple[int, int, int], tokens: int
) -> None:
    layout = load(processor).layout(width, height)
    assert (layout.grid, layout.tokens, layout.features) == (grid, tokens, tokens)
    assert layout.payload == {"grid_thws": [list(grid)]}


def test_the_descriptor_is_the_one_that_other_systems_read(load: Any) -> None:
    written = descriptor_json(load(RELEASED).describe(ImageRef("file:///a.png", "ab" * 32, "image/png", 640, 480, 1)))
    assert written["family"] == "kimi_k25"
    assert written["vllm_modality"] == "vision_chunk"
    assert written["payload"] == {"grid_thws": [[1, 36, 46]]}


def test_the_vision_tower_can_be_run_once_for_each_picture(load: Any) -> None:
    """The parity suite then holds it to that."""
    assert load(RELEASED).forward.grid == "image_grid_thw"


def test_the_class_defaults_are_the_released_numbers() -> None:
    ours, theirs = KimiSettings(), RELEASED["media_proc_cfg"]
    for name in ("patch_size", "merge_kernel_size", "in_patch_limit", "patch_limit_on_one_side", "fixed_output_tokens"):
        assert getattr(ours, name) == theirs[name]
    assert (list(ours.image_mean), list(ours.image_std)) == (theirs["image_mean"], theirs["image_std"])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 400), st.integers(1, 400), st.sampled_from([(14, 2, 50, 9), (8, 3, 100, 17), (14, 2, 16384, 512)])
)
def test_law_pixels_equals_released_processor(height: int, width: int, numbers: tuple[int, int, int, int]) -> None:
    """The arithmetic of the code that is released with the checkpoint, spelled out."""
    patch, merge, limit, side = numbers
    family = KimiK25(
        KimiSettings(
            backend="pil",
            patch_size=patch,
            merge_kernel_size=merge,
            in_patch_limit=limit,
            patch_limit_on_one_side=side,
        ),
        placeholders=PLACEHOLDERS,
    )
    rgb = noise(height, width, height * 401 + width)
    scale = min(
        1.0,
        (limit / (max(1.0, width // patch) * max(1.0, height // patch))) ** 0.5,
        side * patch / width,
        side * patch / height,
    )
    wide, tall = (min(max(1, int(length * scale)), side * patch) for length in (width, height))
    picture = np.asarray(Image.fromarray(rgb).resize((wide, tall), resample=Image.Resampling.BICUBIC))
    unit = patch * merge
    picture = np.pad(picture, ((0, -tall % unit), (0, -wide % unit), (0, 0)))
    values = released_normalize(picture)
    rows, columns = values.shape[0] // patch, values.shape[1] // patch
    patches = values.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, patch, patch)
    arrays = family.pixels([rgb])
    np.testing.assert_array_equal(arrays["pixel_values"], patches)
    assert arrays["image_grid_thw"].tolist() == [[1, rows, columns]]


def released_normalize(levels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    half = np.full(3, 0.5, np.float32)
    values = (levels / 255.0).astype(np.float32)
    values -= half
    values *= 1.0 / half
    return values


def test_tokens_may_be_fixed(load: Any) -> None:
    layout = load(released(fixed_output_tokens=64)).layout(640, 480)
    assert (layout.grid, layout.tokens) == ((1, 36, 46), 64)
    assert load(released(fixed_output_tokens=64)).fingerprint != GOLDEN_FINGERPRINT


def test_a_caller_may_ask_for_either_backend(load: Any) -> None:
    rgb = noise(90, 150, 1)
    small = {"in_patch_limit": 20}
    pil, torchvision = (
        load(released(**small), backend).pixels([rgb])["pixel_values"] for backend in ("pil", "torchvision")
    )
    assert pil.shape == torchvision.shape
    assert 0 < np.abs(pil - torchvision).max() < 0.1
    native = load({**NATIVE, "max_patches": 20}).pixels([rgb])["pixel_values"]
    np.testing.assert_array_equal(native, torchvision)


def test_without_torch_what_needs_resizing_is_refused_and_nothing_else(load: Any, monkeypatch: Any) -> None:
    family = load({**NATIVE, "max_patches": 20})
    monkeypatch.setitem(sys.modules, "torch", None)
    assert family.layout(150, 90).tokens > 0
    assert len(family.pixels([noise(28, 28, 1)])["pixel_values"]) == 4
    with pytest.raises(ConfigError, match="torch") as caught:
        family.pixels([noise(90, 150, 1)])
    assert "filmroll[torch]" in caught.value.remedy


@pytest.mark.parametrize(
    ("processor", "named"),
    [
        ({"image_processor_type": "Qwen2VLImageProcessor"}, "image_processor_type"),
        ({**RELEASED, "image_processor_type": "MoonViTImageProcessor"}, "image_processor_type"),
        ({**NATIVE, "do_resize": False}, "do_resize"),
        ({**NATIVE, "resample": 4}, "resample"),
        ({**NATIVE, "size": {"max_height": 512}}, "size.max_width"),
        ({**NATIVE, "size": {"max_height": 512, "max_width": 511}}, "size.max_height and size.max_width"),
        ({**NATIVE, "max_patches": 0}, "max_patches"),
        (released(in_patch_limit="many"), "media_proc_cfg.in_patch_limit"),
        (released(fixed_output_tokens=0), "media_proc_cfg.fixed_output_tokens"),
        (released(image_std=[0.5, 0.5, 0]), "image_std"),
        ({"media_proc_cfg": 5}, "media_proc_cfg"),
    ],
)
def test_a_wrong_setting_is_named(load: Any, processor: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json.*{named}"):
        load(processor)


def test_both_forms_in_one_file_must_agree(load: Any) -> None:
    """What transformers writes after reading a released checkpoint: its own defaults, whatever was released."""
    assert load(RELEASED | NATIVE).settings.backend == "torchvision"
    with pytest.raises(CheckpointError, match="contradict"):
        load(released(in_patch_limit=65536) | NATIVE)


@pytest.mark.parametrize("tower", [{"patch_size": 16}, {"merge_kernel_size": [1, 2]}, {"merge_kernel_size": 3}])
def test_a_tower_of_another_checkpoint_is_refused(load: Any, tower: dict[str, Any]) -> None:
    assert load(NATIVE, vision_config={"patch_size": 14, "merge_kernel_size": [2, 2]})
    with pytest.raises(CheckpointError, match=f"vision_config.{next(iter(tower))}"):
        load(NATIVE, vision_config=tower)


def test_placeholders_are_those_of_transformers(model_folder: Any) -> None:
    folder = model_folder(NATIVE, model_type="kimi_k25")
    placeholders, config = load_family(folder).placeholders, AutoConfig.from_pretrained(folder)
    assert placeholders.image == config.image_token_id
    assert placeholders.unsampled == tuple(getattr(config, key) for key in TOKENS)
    assert placeholders.texts[0] == "<|media_pad|>"


def test_placeholders_of_the_released_config(load: Any) -> None:
    """One beyond the vocabulary is no logit that could be suppressed."""
    placeholders = load(RELEASED, media_placeholder_token_id=163605, text_config={"vocab_size": 163840}).placeholders
    assert (placeholders.image, placeholders.unsampled) == (163605, (163605, 163602, 163604))


@pytest.mark.parametrize(
    ("ids", "named"),
    [
        ({"image_token_id": "pad"}, "image_token_id"),
        ({"image_token_id": 163602}, "same id"),
        ({"image_token_id": 5, "media_placeholder_token_id": 6}, "media_placeholder_token_id"),
    ],
)
def test_wrong_placeholders_are_refused(load: Any, ids: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        load(NATIVE, **ids)


def test_the_renderer_is_there(load: Any) -> None:
    assert config_from_name(load(RELEASED).renderer).name == "kimi-k2.5"  # type: ignore[union-attr]
