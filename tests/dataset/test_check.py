"""The check before training: every bad row is found with its line and field, no pixel is decoded, good ones pass."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from PIL import Image

from filmroll.dataset.check import bad_rows
from filmroll.dataset.config import DataConfig
from filmroll.dataset.conversation import Reader
from filmroll.dataset.rows import open_rows
from filmroll.errors import (
    DatasetError,
    FilmrollError,
    ImageFormatError,
    ImageLimitError,
    ImageSourceError,
    LayoutError,
)
from filmroll.families import load_family
from filmroll.store import HttpSources, Limits
from tests.dataset.conftest import Row, Write, chat


def about(source: object) -> Row:
    return chat(("user", [{"type": "image", "image": source}]), ("assistant", "A"))


def found(path: Path, model: Path, http: HttpSources | None = None) -> dict[int, FilmrollError]:
    rows = open_rows(str(path))
    reader = Reader(DataConfig(path="x"), rows.root)
    return dict(bad_rows(rows, reader, load_family(model), Limits(max_bytes=100_000, max_side=5000), http))


def test_good_rows_pass_whatever_their_images_are(pictures: list[Path], write: Write, tiny_model: Path) -> None:
    encoded = "data:image/png;base64," + base64.b64encode(pictures[0].read_bytes()).decode()
    rows = [about("0.png"), about(pictures[1].as_uri()), about(encoded), chat(("user", "x"), ("assistant", "y"))]
    assert found(write(rows), tiny_model) == {}


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("none.png", ImageSourceError),
        ("text.png", ImageFormatError),
        ("large.bmp", ImageLimitError),
        ("wide.png", ImageLimitError),
        ("thin.png", LayoutError),
        ("data:image/png;base64,AAAA", ImageFormatError),
        ("https://example.org/a.png", ImageSourceError),
        ("s3://bucket/a.png", ImageSourceError),
    ],
)
def test_an_image_that_cannot_be_learnt_from_is_found(
    pictures: list[Path], write: Write, tmp_path: Path, tiny_model: Path, source: str, kind: type[FilmrollError]
) -> None:
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (300, 300)).save(tmp_path / "large.bmp")
    Image.new("RGB", (5001, 100)).save(tmp_path / "wide.png")
    Image.new("RGB", (4000, 2)).save(tmp_path / "thin.png")
    (bad,) = found(write([about("0.png"), about(source), about("1.png")]), tiny_model).items()
    assert bad[0] == 1
    assert isinstance(bad[1], kind)
    assert "chats.jsonl:2" in str(bad[1])


def test_urls_pass_where_the_store_fetches_them(write: Write, tiny_model: Path) -> None:
    rows = [about("https://example.org/a.png"), about("http://example.org/a.png")]
    assert list(found(write(rows), tiny_model, HttpSources())) == [1]


def test_a_line_that_is_no_json_has_its_number(write: Write, tiny_model: Path) -> None:
    (bad,) = found(write([chat(("user", "x"), ("assistant", "y")), "{torn"]), tiny_model).values()
    assert isinstance(bad, DatasetError)
    assert str(bad).startswith("chats.jsonl:2: it is no JSON")


def test_pixels_are_not_decoded(pictures: list[Path], write: Write, tiny_model: Path) -> None:
    """A picture that is cut short passes: its header is whole. Rendering finds it."""
    whole = pictures[0].read_bytes()
    pictures[0].write_bytes(whole[: len(whole) - 30])
    assert found(write([about("0.png")]), tiny_model) == {}
