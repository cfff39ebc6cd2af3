"""Rows of all forms that data sets come in, as messages with their images in place; and what is wrong with others."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from filmroll.dataset.config import DataConfig
from filmroll.dataset.conversation import Conversation, Reader
from filmroll.errors import DatasetError
from tests.dataset.conftest import Row, chat

ROOT = Path("/data")
TEXT = {"type": "text", "text": "Which?"}
IMAGE = {"type": "image"}


def read(row: Row, **settings: object) -> Conversation:
    return Reader(DataConfig(path="x.jsonl", **settings), ROOT).read(row)


def shown(row: Row, **settings: object) -> list[object]:
    return read(row, **settings).images


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image_url", "image_url": "a.png"},
        {"type": "image", "image": "a.png"},
        {"type": "image", "url": "a.png"},
        {"type": "image", "path": "a.png"},
        {"type": "image", "image": {"path": "a.png"}},
    ],
)
def test_an_image_part_names_its_image(part: Row) -> None:
    assert shown(chat(("user", [part, TEXT]), ("assistant", "A"))) == ["/data/a.png"]


def test_uris_bytes_and_base64_are_taken_as_they_are() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image", "image": "file:///pictures/a.png"},
        {"type": "image", "url": "https://example.org/a.png"},
        {"type": "image", "image": {"bytes": b"png", "path": "a.png"}},
        {"type": "image", "base64": base64.b64encode(b"png").decode()},
        {"type": "image", "image": "/elsewhere/a.png"},
    ]
    assert shown(chat(("user", parts), ("assistant", "A"))) == [
        "data:image/png;base64,AAAA",
        "file:///pictures/a.png",
        "https://example.org/a.png",
        b"png",
        b"png",
        "/elsewhere/a.png",
    ]


def test_parts_without_a_source_take_the_rows_images_in_turn() -> None:
    row = chat(("user", [IMAGE, TEXT]), ("assistant", "A"), ("user", [TEXT, IMAGE]), ("assistant", "B"))
    assert shown({**row, "images": ["a.png", {"bytes": b"b"}]}) == ["/data/a.png", b"b"]
    assert shown({**row, "pics": ["a.png", "b.png"]}, images="pics") == ["/data/a.png", "/data/b.png"]


def test_parts_may_say_which_of_the_rows_images_they_show() -> None:
    row = chat(("user", [{"type": "image", "index": 1}, {"type": "image", "index": 0}]), ("assistant", "A"))
    assert shown({**row, "images": ["a.png", "b.png"]}) == ["/data/b.png", "/data/a.png"]


def test_the_root_of_relative_paths_is_chosen() -> None:
    row = chat(("user", [{"type": "image", "image": "a.png"}]), ("assistant", "A"))
    assert shown(row, image_root="/pictures") == ["/pictures/a.png"]


def test_a_literal_placeholder_is_refused_unless_it_is_said_what_it_is() -> None:
    row = chat(("user", "<image>\nWhich?"), ("assistant", "A"), images=["a.png"])
    with pytest.raises(DatasetError, match="placeholders = ") as caught:
        read(row)
    assert caught.value.field == "messages[0].content"
    (question, _) = read(row, placeholders="image").messages
    assert question["content"] == [{"type": "image", "image": "/data/a.png"}, {"type": "text", "text": "\nWhich?"}]
    kept = read(chat(("user", "What does <image> mean?"), ("assistant", "A")), placeholders="text")
    assert kept.messages[0]["content"] == "What does <image> mean?"


def test_a_placeholder_in_a_text_part_and_in_an_answer_is_refused_too() -> None:
    for row in (
        chat(("user", [{"type": "text", "text": "see <image>"}]), ("assistant", "A")),
        chat(("user", "Which?"), ("assistant", "It is <image>")),
    ):
        with pytest.raises(DatasetError, match="<image>"):
            read(row)


def test_sharegpts_form() -> None:
    row = {
        "image": "a.png",
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Which?\n<image>"},
            {"from": "gpt", "value": "A"},
        ],
    }
    read_ = read(row, form="sharegpt", placeholders="image")
    assert [message["role"] for message in read_.messages] == ["system", "user", "assistant"]
    assert read_.images == ["/data/a.png"]
    row["conversations"][1]["from"] = "alien"
    with pytest.raises(DatasetError, match="alien"):
        read(row, form="sharegpt", placeholders="image")


def test_tools_may_be_json_as_tables_keep_them() -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    row = chat(("user", "Look."), ("assistant", "A"))
    assert read({**row, "tools": [tool]}).tools == [tool]
    assert read({**row, "tools": '[{"type": "function"}]'}).tools == [{"type": "function"}]
    assert read(row).tools is None
    with pytest.raises(DatasetError) as caught:
        read({**row, "tools": "[{"})
    assert caught.value.field == "tools"


@pytest.mark.parametrize(
    ("row", "field", "words"),
    [
        ({"text": "x"}, "messages", "'text'"),
        ({"messages": []}, "messages", "not empty"),
        ({"messages": "hello"}, "messages", "hello"),
        ({"messages": ["hello"]}, "messages[0]", "str"),
        ({"messages": [{"content": "x"}]}, "messages[0]", "role"),
        (chat(("user", 7), ("assistant", "A")), "messages[0]", "7"),
        (chat(("user", [7]), ("assistant", "A")), "messages[0].content[0]", "int"),
        (chat(("user", [{"type": "audio", "audio": "a.wav"}]), ("assistant", "A")), "messages[0].content[0]", "audio"),
        (chat(("user", "Which?")), "messages", "nothing to learn"),
        (chat(("user", [IMAGE]), ("assistant", "A")), "messages[0].content[0]", "image 0 of the row, which has 0"),
        (chat(("user", [IMAGE, IMAGE]), ("assistant", "A"), images=["a"]), "messages[0].content[1]", "which has 1"),
        (chat(("user", [IMAGE]), ("assistant", "A"), images=["a", "b"]), "images[1]", "no message shows it"),
        (chat(("user", [{**IMAGE, "index": 2}]), ("assistant", "A"), images=["a"]), "messages[0].content[0]", "2"),
        (chat(("user", [{**IMAGE, "image": 7}]), ("assistant", "A")), "messages[0].content[0]", "7"),
        (chat(("user", [{**IMAGE, "base64": "?"}]), ("assistant", "A")), "messages[0].content[0]", "base64"),
    ],
)
def test_what_is_wrong_is_said_with_its_field(row: Row, field: str, words: str) -> None:
    with pytest.raises(DatasetError) as caught:
        read(row)
    assert caught.value.field == field
    assert words in caught.value.problem
