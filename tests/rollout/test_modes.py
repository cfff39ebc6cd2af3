"""One setting, the same calls and results: references, references with their images, tensors beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filmroll.errors import ConfigError, ImageNotFoundError
from filmroll.rollout.client import generate_request
from filmroll.rollout.modes import open_renderer
from filmroll.wire.generate import SamplingParams, encode
from tests.store.pictures import noise
from tests.train.every_case import CASES

PICTURES = [noise(40, 60, seed=1), noise(64, 32, seed=2)]
SPEECHLESS = {"kimi_k25", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe"}
"""Tiny checkpoints whose tokenizers lack what the library's renderers write."""
MESSAGES = [{"role": "user", "content": [{"type": "image", "image": picture} for picture in PICTURES]}]


@pytest.mark.parametrize("case", sorted(CASES.keys() - SPEECHLESS))
def test_every_mode_gives_the_same_prompt(case: str, tmp_path: Path) -> None:
    CASES[case].build(tmp_path / "model")
    renderers: dict[Any, Any] = {
        mode: open_renderer(tmp_path / "model", "" if mode == "inline" else tmp_path / mode, multimodal=mode)
        for mode in ("raw", "inline", "processed")
    }
    prompts = {mode: renderer.render(MESSAGES) for mode, renderer in renderers.items()}
    for prompt in prompts.values():
        assert type(prompt) is type(prompts["raw"])
        np.testing.assert_array_equal(prompt.expanded().token_ids, prompts["raw"].expanded().token_ids)
        assert [one.identity for one in prompt.images] == [one.identity for one in prompts["raw"].images]
    assert [mode for mode, prompt in prompts.items() if prompt.features] == ["processed"]
    assert all(image.image.uri.startswith("data:") for image in prompts["inline"].images)
    expected = prompts["raw"].family.pixels(PICTURES)
    assert prompts["processed"].features.keys() == expected.keys()
    for name, array in prompts["processed"].features.items():
        np.testing.assert_array_equal(array, expected[name])


def test_tensors_stay_beside_the_renderer(tiny_model: Path, tmp_path: Path) -> None:
    """They grow with the conversation; what goes to an engine is the reference."""
    renderer = open_renderer(tiny_model, tmp_path, multimodal="processed")
    prompt = renderer.render(MESSAGES)
    longer = renderer.bridge(prompt, [65, renderer.stop_token_ids[0]], MESSAGES)
    assert longer is not None
    assert len(longer.features["image_grid_thw"]) == 4
    assert b"pixel_values" not in encode(generate_request(prompt, SamplingParams()))


def test_tensors_are_of_verified_images(tiny_model: Path, tmp_path: Path) -> None:
    prompt = open_renderer(tiny_model, tmp_path, multimodal="processed").render(MESSAGES)
    Path(prompt.images[1].image.uri.removeprefix("file://")).unlink()
    with pytest.raises(ImageNotFoundError) as caught:
        _ = prompt.features
    assert caught.value.index == 1


@pytest.mark.parametrize(("store", "mode"), [("", "raw"), ("", "processed"), ("images", "inline"), ("images", "other")])
def test_a_mode_that_does_not_fit_is_refused(tiny_model: Path, store: str, mode: Any) -> None:
    with pytest.raises(ConfigError):
        open_renderer(tiny_model, store, multimodal=mode)
