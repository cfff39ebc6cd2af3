"""A model folder that is not whole is refused by name of what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from filmroll.errors import CheckpointError, UnknownFamilyError
from filmroll.families import FAMILIES, load_family
from filmroll.families.checkpoint import Section, read_checkpoint


def test_what_is_neither_a_folder_nor_a_name_of_the_hub() -> None:
    with pytest.raises(CheckpointError, match="not a folder") as caught:
        load_family("models/of/mine")
    assert "org/name" in caught.value.remedy
    assert "mine" not in str(caught.value.wire())


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_a_missing_file_is_named(model_folder: Any, file: str) -> None:
    folder: Path = model_folder()
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=f"(has no|neither) {file}") as caught:
        load_family(folder)
    assert str(folder) in str(caught.value)
    assert str(folder) not in str(caught.value.wire())


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "cut", "binary", "deep"])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "tokenizer_config.json"])
def test_a_garbled_file_is_named(model_folder: Any, file: str, content: bytes) -> None:
    folder: Path = model_folder()
    (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=file):
        load_family(folder)


def test_a_file_that_is_no_object_is_named(model_folder: Any) -> None:
    folder: Path = model_folder()
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json holds no JSON object"):
        load_family(folder)


def test_a_config_without_model_type(model_folder: Any) -> None:
    folder: Path = model_folder()
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json lacks model_type"):
        load_family(folder)


def test_an_unknown_model_type_lists_the_known_ones(model_folder: Any) -> None:
    with pytest.raises(UnknownFamilyError, match="gpt2") as caught:
        load_family(model_folder(model_type="gpt2"))
    for family in FAMILIES:
        for model_type in family.model_types:
            assert model_type in caught.value.remedy


def test_families_need_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; import filmroll.families, filmroll.families.tiny, filmroll.pixels.patches, filmroll.materialize;"
        "sys.exit(bool({'torch', 'transformers', 'renderers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


LISTED: dict[str, Any] = {"added_tokens_decoder": {"7": {"content": "<img>"}}}
DEFINED: dict[str, Any] = {"added_tokens": [{"id": 8, "content": "<img>"}]}


@pytest.mark.parametrize(
    ("listed", "defined", "found"),
    [
        (LISTED, DEFINED, 7),
        (LISTED, None, 7),
        ({}, DEFINED, 8),
        (None, DEFINED, 8),
        ({"added_tokens_decoder": {"seven": {"content": "<img>"}, "9": "<img>"}}, DEFINED, 8),
        ({}, {"added_tokens": [5, {"id": "x", "content": "<img>"}, {"content": "<img>"}]}, None),
        ({"added_tokens_decoder": {"1" * 5000: {"content": "<img>"}}}, {"added_tokens": "<img>"}, None),
        (None, None, None),
    ],
)
def test_the_id_of_an_added_token(model_folder: Any, listed: Any, defined: Any, found: int | None) -> None:
    folder: Path = model_folder()
    for name, content in (("tokenizer_config.json", listed), ("tokenizer.json", defined)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    checkpoint = read_checkpoint(folder)
    if found is None:
        with pytest.raises(CheckpointError, match="<img>"):
            checkpoint.token("<img>")
    else:
        assert checkpoint.token("<img>") == found


@pytest.mark.parametrize("value", [448, [448, 448], {"height": 448, "width": 448}])
def test_a_height_and_a_width_in_every_spelling(value: Any) -> None:
    assert Section("f.json", {"size": value}).pair("size") == (448, 448)


@pytest.mark.parametrize("value", ["448", 0, True, 4.5, [448], {"height": 448, "width": "4"}])
def test_no_height_and_width(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"f\.json: size"):
        Section("f.json", {"size": value}).pair("size")
