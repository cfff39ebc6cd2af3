"""The documents say what the code does: formats, errors, fields, dependencies, and every link and name in them."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec
import numpy as np
import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from filmroll.engine import http
from filmroll.errors import FilmrollError, every_error
from filmroll.families.base import Placeholders
from filmroll.families.qwen_vl import QwenVL, QwenVLSettings
from filmroll.image import ImageRef
from filmroll.materialize import Materializer
from filmroll.run.config import Config
from filmroll.store import Limits, open_store
from filmroll.store.formats.base import MAX_PARTS
from filmroll.store.formats.jpeg import MAX_SCANS
from filmroll.wire.arrays import decode_array, encode_array
from filmroll.wire.descriptor import ImageDescriptor, descriptor_json
from filmroll.wire.reference import MAX_REFERENCE_CHARS, write_reference

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FORMAT = (ROOT / "docs" / "format.md").read_text()
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
DEPENDENCIES = (ROOT / "docs" / "dependencies.md").read_text()
DESIGN = (ROOT / "docs" / "design.md").read_text()

DIGEST = "ab" * 32
DESCRIPTOR = ImageDescriptor(
    image=ImageRef(f"file:///run/assets/images/ab/{DIGEST}.png", DIGEST, "image/png", 256, 256, 1234),
    family="qwen_vl",
    layout_fingerprint="c5ece06d40951692b7035ec4dd381742",
    recipe="0123456789abcdef0123456789abcdef",
    payload={"image_grid_thw": [[1, 16, 16]]},
    tokens=64,
)
QWEN3_VL = {"patch_size": 16, "min_pixels": 65536, "max_pixels": 16777216}

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def blocks(text: str, language: str) -> list[str]:
    """The contents of the fenced blocks whose opening line says exactly that."""
    return re.findall(rf"^```{re.escape(language)}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def golden(name: str) -> str:
    (block,) = blocks(FORMAT, name)
    return block


def family(**settings: int) -> QwenVL:
    placeholders = Placeholders(image=1, unsampled=(1,), texts=())
    return QwenVL(QwenVLSettings(**settings), placeholders=placeholders)


# Formats


def test_the_golden_descriptor_is_what_is_written() -> None:
    assert json.loads(golden("json golden-descriptor")) == descriptor_json(DESCRIPTOR)


def test_the_golden_reference_is_what_is_written_byte_for_byte() -> None:
    assert golden("json golden-reference") == write_reference(DESCRIPTOR) + "\n"


def test_the_golden_error_is_what_is_answered(tmp_path: Path) -> None:
    seeing, store = family(patch_size=16, min_pixels=1024), open_store(tmp_path)
    honest, other = (seeing.describe(store.put(np.full((32, 64, 3), level, np.uint8))) for level in (0, 1))
    forged = msgspec.structs.replace(other, payload={"image_grid_thw": [[1, 2, 2]]})
    with pytest.raises(FilmrollError) as caught:
        Materializer(store, seeing).load([honest, forged])
    wire = caught.value.at(field="features.kwargs_data.image").wire()
    assert json.loads(golden("json golden-error")) == {"error": wire}


@pytest.mark.parametrize("name", ["fingerprint", "recipe"])
def test_the_golden_hashes_are_those_of_their_texts_and_of_the_code(name: str) -> None:
    text, digest = golden(f"text golden-{name}").splitlines()
    assert hashlib.sha256(text.encode()).hexdigest()[:32] == digest
    assert getattr(family(**QWEN3_VL), name) == digest


def test_the_table_of_layouts_is_what_is_computed() -> None:
    rows = re.findall(r"^\| (\d+) x (\d+) \| (\d+) x (\d+) \| 1, (\d+), (\d+) \| ([\d,]+) \|$", FORMAT, re.MULTILINE)
    assert len(rows) >= 6
    for row in rows:
        width, height, wide, tall, down, across, tokens = (int(cell.replace(",", "")) for cell in row)
        layout = family(**QWEN3_VL).layout(width, height)
        assert (layout.grid, layout.tokens) == ((1, down, across), tokens)
        assert (wide, tall) == (across * 16, down * 16)


@pytest.mark.parametrize("kind", list(every_error()), ids=lambda kind: kind.code)
def test_every_error_has_its_row(kind: type[FilmrollError]) -> None:
    assert f"| `{kind.code}` | {kind.status} | `{kind.__name__}` |" in FORMAT


def test_no_other_error_is_documented() -> None:
    documented = re.findall(r"^\| `(\w+)` \| \d{3} \| `(\w+)` \|", FORMAT, re.MULTILINE)
    assert documented == [(kind.code, kind.__name__) for kind in every_error()]


def test_the_limits_are_the_documented_ones() -> None:
    limits = Limits()
    for number in (limits.max_bytes, limits.max_pixels, limits.max_side, MAX_PARTS, MAX_SCANS, MAX_REFERENCE_CHARS):
        assert f"{number:,}" in FORMAT
    assert f"{http.MAX_BODY_BYTES >> 20} MiB" in FORMAT


@pytest.mark.parametrize("dtype", ["int32", "float32", "uint8"])
def test_the_extension_codes_are_the_documented_ones(dtype: str) -> None:
    sent = encode_array(np.ones(3, dtype))
    assert f"| {sent.code} | {dtype} |" in FORMAT
    assert decode_array(sent.code, memoryview(sent.data)).dtype == dtype


# Configuration


def models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold: one, or one of several."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def fields() -> dict[str, set[str]]:
    """Every field by its dotted name, with its default as the page writes it; variants may differ."""
    found: dict[str, set[str]] = {}
    for name, field in Config.model_fields.items():
        sections = models(field.annotation)
        for section in sections:
            for inner, one in section.model_fields.items():
                found.setdefault(f"{name}.{inner}", set()).add(written(one.default))
        if not sections:
            found[name] = {written(field.default)}
    return found


def written(default: Any) -> str:
    return "required" if default is PydanticUndefined else f"`{json.dumps(default)}`"


def test_every_field_is_documented_with_its_default_and_no_other_is() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| (.+) \|$", CONFIGURATION, re.MULTILINE)
    documented = {name: default for name, default, _ in rows}
    assert len(documented) == len(rows)
    assert set(documented) == set(fields())
    assert {name: default for name, default in documented.items() if default not in fields()[name]} == {}


# Dependencies


def test_every_dependency_has_its_row_and_no_other_has() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(one for group in project["optional-dependencies"].values() for one in group),
    ]
    names = {re.match(r"[\w.-]+", one)[0] for one in declared} - {"filmroll"}
    assert set(re.findall(r"^\| `([\w.-]+)` \|", DEPENDENCIES, re.MULTILINE)) == names


# Every document


def slugs(document: Path) -> set[str]:
    """The anchors of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_document
def test_relative_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert not anchor or anchor in slugs(target), link


@every_document
def test_tests_that_are_named_are_there(document: Path) -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", document.read_text()):
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"


@every_document
def test_files_that_are_named_are_there(document: Path) -> None:
    for name in re.findall(r"`((?:\w+/)+\w+\.(?:py|toml|md|svg|txt))`", document.read_text()):
        places = (ROOT, ROOT / "src" / "filmroll", ROOT / "docs")
        assert any((place / name).exists() for place in places), name


@every_document
def test_python_in_it_compiles(document: Path) -> None:
    for block in blocks(document.read_text(), "python"):
        compile(block, document.name, "exec")


@every_document
def test_toml_in_it_is_toml(document: Path) -> None:
    for block in blocks(document.read_text(), "toml"):
        assert tomllib.loads(block)


def test_the_drawn_tree_is_the_real_one() -> None:
    """Every file of the drawing is there, and every room is drawn."""
    (drawing,) = [
        block for block in re.findall(r"^```\n(.*?)^```$", DESIGN, re.DOTALL | re.MULTILINE) if "src/" in block
    ]
    source = ROOT / "src" / "filmroll"
    assert set(re.findall(r"\b\w+\.py\b", drawing)) <= {path.name for path in source.rglob("*.py")}
    rooms = {path.parent.name for path in source.rglob("__init__.py")} - {"filmroll"}
    assert {room for room in rooms if f"{room}/" not in drawing} == set()
