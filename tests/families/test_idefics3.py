"""Idefics3 and SmolVLM: golden numbers, and what is taken from a checkpoint's files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from filmroll.errors import CheckpointError, GridError
from filmroll.families import Family, load_family
from filmroll.families.idefics3 import GRID, PROCESSORS
from filmroll.families.markers import FAKE, IMAGE, OVERVIEW
from filmroll.image import ImageRef

GOLDEN_FINGERPRINT = "d183dfd3d27c1fbd5f338954b3e6ddc9"
GOLDEN_RECIPE = "058e4d0b51c38d0f6e73b4b786d189c3"
RELEASED: dict[str, dict[str, Any]] = {
    "idefics3": {"vision_config": {"patch_size": 14, "image_size": 364}},
    "smolvlm": {"vision_config": {"patch_size": 16, "image_size": 512}, "scale_factor": 4},
}
SMOLVLM = {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}}
Make = Callable[..., Path]


def tokenizer(*specials: str) -> Tokenizer:
    """Every letter is a token; two new lines are one."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    bpe = Tokenizer(models.BPE({word: number for number, word in enumerate([*sorted(letters), "ĊĊ"])}, [("Ċ", "Ċ")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.add_special_tokens(list(specials))
    return bpe


SPECIALS = (IMAGE, FAKE, OVERVIEW, *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)))


@pytest.fixture
def folder(tmp_path: Path) -> Make:
    """Writes what the family reads of a checkpoint, as it is released."""

    def make(
        processor: dict[str, Any] | None = None,
        model_type: str = "idefics3",
        *,
        specials: tuple[str, ...] = SPECIALS,
        joint: dict[str, Any] | None = None,
        **config: Any,
    ) -> Path:
        made = tokenizer(*specials)
        made.save(str(tmp_path / "tokenizer.json"))
        ids = {"image_token_id": made.token_to_id(IMAGE)}
        whole = {"model_type": model_type, **ids, **RELEASED[model_type], **config}
        (tmp_path / "config.json").write_text(json.dumps(whole))
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor or {}))
        (tmp_path / "processor_config.json").write_text(json.dumps(joint or {}))
        return tmp_path

    return make


def expansion(family: Family, width: int, height: int) -> list[int]:
    image = family.describe(ImageRef("file:///a.png", "ab" * 32, "image/png", width, height, 1))
    return list(family.expansion(image).tolist())


def test_golden_names(folder: Make) -> None:
    """A change here makes every stored descriptor unreadable: it must be meant."""
    family = load_family(folder())
    assert (family.fingerprint, family.recipe) == (GOLDEN_FINGERPRINT, GOLDEN_RECIPE)


@pytest.mark.parametrize(
    ("height", "width", "tiles", "tokens"),
    [
        (1, 1, (4, 4), 16 * 171 + 3 + 1 + 172),
        (480, 640, (3, 4), 12 * 171 + 2 + 1 + 172),
        (1080, 1920, (3, 4), 12 * 171 + 2 + 1 + 172),
        (640, 480, (4, 3), 12 * 171 + 3 + 1 + 172),
        (364, 1456, (1, 4), 4 * 171 + 0 + 1 + 172),
        (10, 10000, (1, 4), 4 * 171 + 0 + 1 + 172),
    ],
)
def test_golden_layouts(folder: Make, height: int, width: int, tiles: tuple[int, int], tokens: int) -> None:
    """Rows end in a new line, the last one in two, which are one token here."""
    layout = load_family(folder()).layout(width, height)
    assert (layout.grid, layout.tokens) == ((1, *tiles), tokens)
    assert layout.features == 169 * (tiles[0] * tiles[1] + 1)
    assert Idefics3ImageProcessorPil().get_number_of_image_patches(height, width)[1:] == tiles


def test_the_numbers_of_smolvlm(folder: Make) -> None:
    family = load_family(folder(SMOLVLM, "smolvlm", joint={"image_seq_len": 64}))
    layout = family.layout(1920, 1080)
    assert (layout.grid, layout.features) == ((1, 3, 4), 13 * 64)
    assert family.cost(layout) == 13 * 1024


@pytest.mark.parametrize("longest", [4000, 4096, 5000])
def test_no_edge_grows_beyond_4096(folder: Make, longest: int) -> None:
    processor = {"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": 512}}
    specials = (*SPECIALS, *(f"<row_{row}_col_{column}>" for row in range(1, 9) for column in range(7, 9)))
    family = load_family(folder(processor, "smolvlm", joint={"image_seq_len": 64}, specials=specials))
    theirs = Idefics3ImageProcessorPil(**processor)
    for height, width in [(100, 100), (70, 4000), (4000, 70), (1, 9), (9, 1), (999, 1000)]:
        split = theirs.split_images(
            theirs.resize_for_vision_encoder(theirs.resize(np.zeros((3, height, width), np.uint8), theirs.size), 512),
            {"longest_edge": 512},
        )
        assert family.layout(width, height).grid[1:] == split[1:]


def test_the_placeholder_tells_rows_and_columns(folder: Make) -> None:
    family = load_family(folder({"size": {"longest_edge": 728}}))
    made = tokenizer(*SPECIALS)
    spelled = "".join(
        ("\n" if row == 2 and column == 1 else "") + f"{FAKE}<row_{row}_col_{column}>" + IMAGE * 169
        for row in (1, 2)
        for column in (1, 2)
    )
    spelled += f"\n\n{FAKE}{OVERVIEW}" + IMAGE * 169 + FAKE
    assert expansion(family, 100, 90) == made.encode(spelled).ids


def test_a_picture_without_tiles_has_an_overview_alone(folder: Make) -> None:
    family = load_family(folder({"do_image_splitting": False}))
    made = tokenizer(*SPECIALS)
    assert expansion(family, 100, 90) == made.encode(FAKE + OVERVIEW + IMAGE * 169 + FAKE).ids


def test_markers_that_are_no_tokens_are_spelled_out(folder: Make) -> None:
    short, family = load_family(folder()), load_family(folder(specials=(IMAGE, FAKE)))
    made = tokenizer(IMAGE, FAKE)
    first = made.encode(f"{FAKE}<row_1_col_1>{IMAGE}").ids
    assert expansion(family, 100, 90)[: len(first)] == first
    assert family.layout(100, 90).tokens > short.layout(100, 90).tokens
    assert family.layout(100, 90).features == short.layout(100, 90).features
    assert family.placeholders.texts == (IMAGE, FAKE)
    assert len(load_family(folder()).placeholders.unsampled) == 3 + 16


@pytest.mark.parametrize("tokens", [1, 171, 10**6])
@pytest.mark.parametrize("grid", [[1, 1, 1], [1, 2, 2], [1, 7, 7], [1, 2**24, 2**24]])
def test_a_payload_that_does_not_fit_is_refused(folder: Make, grid: list[int], tokens: int) -> None:
    family = load_family(folder())
    image = family.describe(ImageRef("file:///a.png", "ab" * 32, "image/png", 100, 90, 1))
    with pytest.raises(GridError, match="tokens"):
        family.expansion(msgspec.structs.replace(image, payload={GRID: [grid]}, tokens=tokens))


def test_pictures_stand_in_one_row_and_the_mask_takes_no_room(folder: Make) -> None:
    family = load_family(folder())
    wide, tall = np.zeros((10, 40, 3), np.uint8), np.full((40, 20, 3), 255, np.uint8)
    arrays = family.pixels([wide, tall])
    assert arrays["pixel_values"].shape == (1, 5 + 9, 3, 364, 364)
    assert arrays["rows"].tolist() == [[1, 4]]
    assert arrays["cols"].tolist() == [[4, 2]]
    assert (arrays["pixel_values"][0, :5] == -1).all()
    assert (arrays["pixel_values"][0, 5:] == 1).all()
    assert arrays["pixel_attention_mask"].all()
    assert not any(family.pixels([wide])["pixel_attention_mask"].strides)


@pytest.mark.parametrize("kind", PROCESSORS)
def test_every_processor_means_the_same(folder: Make, kind: str) -> None:
    assert load_family(folder({"image_processor_type": kind})).recipe == GOLDEN_RECIPE


@pytest.mark.parametrize(
    ("processor", "named"),
    [
        ({"image_processor_type": "Idefics2ImageProcessor"}, "image_processor_type"),
        ({"do_resize": False}, "do_resize"),
        ({"do_pad": False}, "do_pad"),
        ({"do_normalize": False}, "all 0"),
        ({"image_mean": 0.0}, "all 0"),
        ({"size": {"height": 364, "width": 364}}, "size"),
        ({"size": {"longest_edge": 364, "shortest_edge": 100}}, "size"),
        ({"size": {"longest_edge": 0}}, "size.longest_edge"),
        ({"max_image_size": {"longest_edge": "364"}}, "max_image_size.longest_edge"),
        ({"max_image_size": {"longest_edge": 512}}, "image_seq_len"),
        ({"do_image_splitting": "yes"}, "do_image_splitting"),
    ],
)
def test_a_wrong_setting_is_named(folder: Make, processor: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_family(folder(processor))


@pytest.mark.parametrize(
    "config", [{"scale_factor": 1}, {"scale_factor": 3}, {"vision_config": {"patch_size": 16}}, {"vision_config": {}}]
)
def test_a_tower_that_makes_other_features_is_refused(folder: Make, config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="image_seq_len"):
        load_family(folder(**config))


def test_a_config_of_another_tokenizer_is_refused(folder: Make) -> None:
    with pytest.raises(CheckpointError, match="image_token_id"):
        load_family(folder(image_token_id=7))


def test_a_tokenizer_without_the_token_around_images_is_refused(folder: Make) -> None:
    with pytest.raises(CheckpointError, match=FAKE):
        load_family(folder(specials=(IMAGE,)))


def test_a_missing_tokenizer_is_named(folder: Make) -> None:
    path = folder()
    (path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_family(path)
