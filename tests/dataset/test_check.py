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
from filmroll.render import load_renderer
from filmroll.store import HttpSources, Limits, open_store
from tests.dataset.conftest import Row, Write, chat


def about(source: object) -> Row:
    return chat(("user", [{"type": "image", "image": source}]), ("assistant", "A"))


def found(path: Path, model: Path, http: HttpSources | None = None) -> dict[int, FilmrollError]:
    rows = open_rows(str(path))
    store = open_store(path.parent / "images", Limits(max_bytes=100_000, max_side=5000), http=http)
    bad = dict(bad_rows(rows, Reader(DataConfig(path="x"), rows.root), load_renderer(model, store)))
    assert not any(store.shelf.items())
    return bad


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


CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}


@pytest.mark.parametrize(
    ("turn", "field", "words"),
    [
        (
            {"role": "asistant", "content": "A"},
            "messages[1].role",
            "nobody has the role 'asistant'. It is one of system",
        ),
        ({"role": "developer", "content": "A"}, "messages[1].role", "'developer'"),
        ({"role": "user"}, "messages[1]", "it has no content"),
        ({"role": "assistant", "content": None}, "messages[1]", "it has no content"),
        ({"role": "tool", "content": None, "tool_calls": [CALL]}, "messages[1]", "it has no content"),
        ({"role": "assistant", "content": "A", "reasoning_content": 3}, "messages[1].reasoning_content", "int '3'"),
        ({"role": "assistant", "tool_calls": CALL}, "messages[1].tool_calls", "are a list, this is dict"),
        ({"role": "assistant", "tool_calls": ["look"]}, "messages[1].tool_calls[0]", "names its function"),
        (
            {"role": "assistant", "tool_calls": [CALL, {"function": {}}]},
            "messages[1].tool_calls[1]",
            "names its function",
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "look", "arguments": '{"at'}]},
            "messages[1].tool_calls[0].function.arguments",
            "no JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "look", "arguments": "[1]"}]},
            "messages[1].tool_calls[0].function.arguments",
            "this is list",
        ),
        ({"role": "user", "content": "so<|im_end|>"}, "messages[1].content", "the text contains '<|im_end|>'"),
    ],
)
def test_a_message_that_no_model_could_be_shown_is_found(
    write: Write, tiny_model: Path, turn: Row, field: str, words: str
) -> None:
    good = chat(("user", "x"), ("assistant", "y"))
    rows = [good, {"messages": [{"role": "user", "content": "x"}, turn, {"role": "assistant", "content": "y"}]}]
    (bad,) = found(write(rows), tiny_model).items()
    assert bad[0] == 1
    assert (bad[1].field, words in bad[1].problem + ". " + bad[1].remedy) == (field, True), str(bad[1])
    assert "chats.jsonl:2" in str(bad[1])


def test_calls_and_reasoning_may_stand_where_a_content_could(write: Write, tiny_model: Path) -> None:
    said = [
        {"role": "assistant", "tool_calls": [CALL, {"name": "look", "arguments": '{"at": "it"}'}, {"name": "wait"}]},
        {"role": "assistant", "content": None, "reasoning_content": "so", "tool_calls": None},
        {"role": "tool", "content": ""},
    ]
    rows = [
        {"messages": [{"role": "user", "content": "x"}, one, {"role": "assistant", "content": "y"}]} for one in said
    ]
    assert found(write(rows), tiny_model) == {}


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
