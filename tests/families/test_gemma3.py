"""Gemma 3: what is taken from a checkpoint's files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoTokenizer, Gemma3Processor
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from filmroll.errors import CheckpointError
from filmroll.families import load_family
from filmroll.families.gemma3 import Gemma3, Gemma3Settings
from filmroll.materialize.feed import load_model, model_inputs
from filmroll.materialize.sheet import Picture, Sheet
from tests.families.cases.gemma3 import CASES
from tests.families.pictures import noise

RELEASED = {"size": {"height": 896, "width": 896}, "image_mean": [0.5, 0.5, 0.5]}
TOWER = {"image_size": 896, "patch_size": 14}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma3") / "model"
    CASES[0].build(folder)
    return folder


def make(model_folder: Any, processor: dict[str, Any], joint: dict[str, Any] | None = None, **config: Any) -> Path:
    folder: Path = model_folder(processor, "gemma3", **{"vision_config": TOWER, **config})
    (folder / "processor_config.json").write_text(json.dumps(joint or {"processor_class": "Gemma3Processor"}))
    return folder


def test_the_released_numbers(model_folder: Any) -> None:
    folder = make(model_folder, RELEASED)
    family, config = load_family(folder), AutoConfig.from_pretrained(folder)
    assert isinstance(family, Gemma3)
    layout = family.layout(640, 480)
    assert (layout.tokens, layout.features, family.cost(layout)) == (258, 256, 64 * 64)
    placeholders = family.placeholders
    assert (placeholders.image, placeholders.pad) == (config.image_token_id, config.boi_token_id)
    assert placeholders.unsampled == (config.image_token_id, config.boi_token_id, config.eoi_token_id)
    assert (family.forward.marks, family.forward.grid, family.renderer) == ("token_type_ids", None, None)


def test_golden_names(model_folder: Any) -> None:
    """A change here makes every stored descriptor unreadable: it must be meant."""
    family = load_family(make(model_folder, RELEASED))
    assert family.fingerprint == "72c284e1541674d0eb5208a95e2ce4a1"
    assert family.recipe == "49a2a131936e8151234ed70ef7eba9f1"


def test_the_class_defaults_are_those_of_transformers() -> None:
    theirs, ours = Gemma3ImageProcessorPil(), Gemma3Settings()
    for name in ("do_rescale", "rescale_factor", "do_normalize"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert (ours.height, ours.width) == (theirs.size["height"], theirs.size["width"])
    assert (ours.image_mean, ours.image_std) == (tuple(theirs.image_mean), tuple(theirs.image_std))
    assert ours.resample == int(theirs.resample)


@pytest.mark.parametrize(
    ("processor", "config", "named"),
    [
        ({**RELEASED, "do_pan_and_scan": True}, {}, "do_pan_and_scan"),
        ({**RELEASED, "do_resize": False}, {}, "do_resize"),
        ({**RELEASED, "image_processor_type": "SiglipImageProcessor"}, {}, "image_processor_type"),
        ({"size": {"shortest_edge": 896}}, {}, "size"),
        ({"size": {"height": 448, "width": 448}}, {}, "image_size 896"),
        ({"size": {"height": 896, "width": 448}}, {}, "image_size 896"),
        (RELEASED, {"vision_config": {}}, "image_size 224"),
        (RELEASED, {"mm_tokens_per_image": 64}, "mm_tokens_per_image 64"),
        (RELEASED, {"boi_token_index": 256000}, "same id"),
    ],
)
def test_what_does_not_fit_is_named(model_folder: Any, processor: Any, config: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named) as caught:
        load_family(make(model_folder, processor, **config))
    assert caught.value.remedy


def test_the_processors_own_number_of_tokens_is_held_to_the_models(model_folder: Any) -> None:
    joint = {"image_seq_length": 64}
    assert load_family(make(model_folder, RELEASED, joint, mm_tokens_per_image=64)).layout(5, 5).tokens == 66
    with pytest.raises(CheckpointError, match="image_seq_length 64"):
        load_family(make(model_folder, RELEASED, joint))


def test_no_file_makes_the_whole_processor_pan_and_scan(built: Path) -> None:
    """Why a file that asks for it is refused: the image processor would crop, the processor around it would not."""
    image, tokenizer = Image.new("RGB", (900, 300)), AutoTokenizer.from_pretrained(built)
    numbers = {"min_crop_size": 64, "max_num_crops": 4, "min_ratio_to_activate": 1.2}
    asked = {f"pan_and_scan_{name}": number for name, number in numbers.items()}
    cropping = Gemma3ImageProcessorPil.from_pretrained(built, do_pan_and_scan=True, do_convert_rgb=True, **asked)
    assert len(cropping([image])["pixel_values"]) == 4
    whole = Gemma3Processor(cropping, tokenizer, image_seq_length=16)
    assert len(whole(text=["<start_of_image>"], images=[[image]])["pixel_values"]) == 1


def test_newlines_around_an_image_belong_to_the_text(built: Path) -> None:
    family, tokenizer = load_family(built), AutoTokenizer.from_pretrained(built)
    assert family.prompt_text("a<start_of_image>") == "a\n\n<start_of_image>\n\n"
    before, pad, after = tokenizer(family.prompt_text("\n<start_of_image>\n\n"))["input_ids"]
    assert tokenizer.convert_ids_to_tokens([before, after]) == ["Ċ" * 3, "Ċ" * 4]
    assert pad == family.placeholders.pad


def test_the_model_needs_the_marks(built: Path) -> None:
    """Soft tokens see each other in both directions: without the marks the logits are others."""
    family, model = load_family(built), load_model(built)
    picture = noise(40, 70, 0)
    sheet = Sheet.of([Picture(("a", family.recipe), 16, family.pixels([picture]))])
    begin, end = family.placeholders.unsampled[1:]
    row = [65, begin, *[family.placeholders.image] * 16, end, 66]
    inputs = model_inputs(family, [row], sheet, pad="right")
    assert inputs["token_type_ids"].tolist() == [[0, 0, *[1] * 16, 0, 0]]
    with torch.no_grad():
        marked = model(**inputs).logits
        unmarked = model(**inputs | {"token_type_ids": torch.zeros_like(inputs["token_type_ids"])}).logits
    assert not torch.allclose(marked[:, -1], unmarked[:, -1], atol=1e-4)
