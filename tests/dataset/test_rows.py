"""Rows by number: JSON lines that are never in memory whole, and tables of the datasets package."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pytest

from filmroll.dataset.config import DataConfig
from filmroll.dataset.conversation import Reader
from filmroll.dataset.order import Order, hold_out
from filmroll.dataset.rows import open_rows
from filmroll.errors import ConfigError, DatasetError
from tests.dataset.conftest import Write, chat


def test_lines_are_found_by_number_blank_ones_aside(write: Write) -> None:
    path = write([{"n": 0}, "", {"n": 1, "text": "ü\u2028"}, "   ", {"n": 2}])
    rows = open_rows(str(path))
    assert [rows[index]["n"] for index in (2, 0, 1)] == [2, 0, 1]
    assert [rows.place(index) for index in range(3)] == ["chats.jsonl:1", "chats.jsonl:3", "chats.jsonl:5"]


def test_a_last_line_without_its_end_and_windows_line_ends_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(b'{"n": 0}\r\n\r\n{"n": 1}')
    rows = open_rows(str(path))
    assert [rows[index]["n"] for index in range(len(rows))] == [0, 1]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_bytes(b'\xef\xbb\xbf{"n": 0}\n{"n": 1}\n')
    rows = open_rows(str(tmp_path / "chats.jsonl"))
    assert [row["n"] for row in (rows[0], rows[1])] == [0, 1]


def test_several_files_are_one_data_set(tmp_path: Path) -> None:
    for name, numbers in (("b", (2, 3)), ("a", (0, 1)), ("c", ())):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"n": number}) + "\n" for number in numbers))
    rows = open_rows(str(tmp_path / "*.jsonl"))
    assert [(rows[index]["n"], rows.place(index)) for index in range(len(rows))] == [
        (0, "a.jsonl:1"),
        (1, "a.jsonl:2"),
        (2, "b.jsonl:1"),
        (3, "b.jsonl:2"),
    ]


def test_a_file_is_never_in_memory_whole(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    with path.open("w") as file:
        for number in range(400):
            file.write(json.dumps({"n": number, "padding": "x" * 100_000}) + "\n")
    tracemalloc.start()
    rows = open_rows(str(path))
    assert rows[399]["n"] == 399
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000 < path.stat().st_size / 10


@pytest.mark.parametrize(("line", "words"), [("{torn", "no JSON"), ("[1]", "list"), ('"text"', "str")])
def test_a_line_that_is_no_row_is_an_error(write: Write, line: str, words: str) -> None:
    rows = open_rows(str(write([{"n": 0}, line])))
    with pytest.raises(DatasetError, match=words):
        rows[1]


def test_one_array_of_rows_is_said_to_be_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "llava.json"
    path.write_text('\n[\n {"messages": []}\n]')
    with pytest.raises(ConfigError, match=r"llava\.json is one JSON array.* jq -c '\.\[\]' llava\.json > llava\.jsonl"):
        open_rows(str(path))


@pytest.mark.parametrize("path", ["{tmp}/none.jsonl", "{tmp}/empty.jsonl", "{tmp}/notes.txt", "{tmp}"])
def test_what_is_no_data_is_said_at_once(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=path.rpartition("/")[2].replace("{tmp}", tmp_path.name)):
        open_rows(path.replace("{tmp}", str(tmp_path)))


def table(pictures: list[Path]) -> datasets.Dataset:
    """As people build them: an image column beside messages of several shapes."""
    question = [{"type": "image", "text": None}, {"type": "text", "text": "Which?"}]
    answer = [{"type": "text", "text": "A"}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    made = {"messages": [messages] * 3, "images": [[str(path)] for path in pictures]}
    text = datasets.Value("string")
    features = datasets.Features(
        messages=[{"role": text, "content": [{"type": text, "text": text}]}],
        images=datasets.List(datasets.Image()),
    )
    return datasets.Dataset.from_dict(made, features=features)


@pytest.mark.parametrize("form", ["saved", "splits", "parquet", "folder of parquet"])
def test_tables_give_the_bytes_of_images_never_decoded(pictures: list[Path], tmp_path: Path, form: str) -> None:
    made, place = table(pictures), tmp_path / "table"
    if form == "saved":
        made.save_to_disk(place)
    elif form == "splits":
        datasets.DatasetDict(train=made.select([0]), test=made).save_to_disk(place)
    else:
        place = place / "rows.parquet"
        place.parent.mkdir()
        made.to_parquet(place)
        place = place.parent if form == "folder of parquet" else place
    rows = open_rows(str(place), split="test" if form == "splits" else "train")
    assert len(rows) == 3
    for index, path in enumerate(pictures):
        conversation = Reader(DataConfig(path="x"), rows.root).read(rows[index])
        (image,) = conversation.images
        assert (image if isinstance(image, bytes) else Path(image).read_bytes()) == path.read_bytes()
        assert conversation.messages[0]["content"][1] == {"type": "text", "text": "Which?"}


def test_a_split_that_is_not_there_is_an_error_that_lists_them(pictures: list[Path], tmp_path: Path) -> None:
    datasets.DatasetDict(train=table(pictures), test=table(pictures)).save_to_disk(tmp_path / "table")
    with pytest.raises(ConfigError, match="train, test"):
        open_rows(str(tmp_path / "table"), split="dev")


def test_the_fingerprint_changes_with_the_rows(write: Write) -> None:
    before = open_rows(str(write([chat(("user", "a"))]))).fingerprint
    assert open_rows(str(write([chat(("user", "a"))]))).fingerprint == before
    assert open_rows(str(write([chat(("user", "b"))]))).fingerprint != before
    assert open_rows(str(write([chat(("user", "a")), chat(("user", "b"))]))).fingerprint != before


def test_an_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    order = Order(np.arange(3, 53), 8, seed=1, shuffle=True)
    assert order.steps_per_epoch == 7
    epochs = [[row for step in range(7 * epoch, 7 * epoch + 7) for row in order.batch(step)] for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(3, 53))
    assert epochs[0] != epochs[1]
    assert [len(order.batch(step)) for step in range(7)] == [8] * 6 + [2]
    # What a step has follows from its number alone: whoever goes on at step 9 sees what it would have had.
    assert Order(np.arange(3, 53), 8, seed=1, shuffle=True).batch(9) == order.batch(9)
    assert Order(np.arange(3, 53), 8, seed=2, shuffle=True).batch(9) != order.batch(9)
    assert Order(np.arange(3, 53), 8, seed=1, shuffle=False).batch(8) == list(range(11, 19))


def test_what_is_held_out_is_in_no_step() -> None:
    learnt, held = hold_out(np.arange(50), 10, seed=0)
    assert len(held) == 10
    assert sorted([*learnt, *held]) == list(range(50))
    assert list(held) == list(hold_out(np.arange(50), 10, seed=0)[1])
    with pytest.raises(ConfigError, match="held_out"):
        hold_out(np.arange(10), 10, seed=0)
