"""Rollouts as strips: images where their tokens stand, hostile text as text, faults in red."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from filmroll.view.report import write_report
from tests.view.page import Page
from tests.view.runs import RunWriter

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}</style>"


def page_of(run: RunWriter) -> Page:
    return Page(write_report(run.path))


def test_images_stand_where_their_tokens_do(run: RunWriter) -> None:
    rollout = run.rollout(0, expected="AB")
    rollout["turns"][0]["text"] = "before \ufffc between \ufffc after"
    run.rollouts(0, [rollout])
    page = page_of(run)
    assert page.text("prompt") == "1 before 9 tokens between 9 tokens after"
    assert [one["class"] for one in page.having("picture")] == ["picture p0", "picture p1"]


def test_text_without_as_many_places_as_images_still_shows_them_all(run: RunWriter) -> None:
    rollout = run.rollout(0, expected="AB")
    rollout["turns"][0]["text"] = "only \ufffc one"
    run.rollouts(0, [rollout])
    page = page_of(run)
    assert len(page.having("picture")) == 2
    assert page.text("prompt").endswith("one 9 tokens 9 tokens")


def test_each_distinct_image_is_embedded_once(finished: RunWriter) -> None:
    page = page_of(finished)
    assert page.source.count("data:image/png;base64,") == 4
    assert len(page.having("picture")) > 40


def test_a_large_image_becomes_a_thumbnail(run: RunWriter) -> None:
    rollout = run.rollout(0, expected="A")
    rollout["images"] = [run.image(size=(2000, 1000))]
    run.rollouts(0, [rollout])
    page = page_of(run)
    data = re.search(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", page.source)
    assert data is not None
    assert Image.open(io.BytesIO(base64.b64decode(data[1]))).size == (160, 80)


def test_hostile_text_stays_text(run: RunWriter) -> None:
    rollout = run.rollout(0, expected="AB", answer=HOSTILE)
    rollout["name"] = rollout["expected"] = HOSTILE
    rollout["metrics"] = {HOSTILE: 1.0}
    rollout["turns"][0]["text"] += HOSTILE
    rollout["turns"][0]["images"][0]["offset"] = HOSTILE
    run.rollouts(0, [rollout])
    run.config(model=HOSTILE, **{HOSTILE: HOSTILE})
    run.events({"time": 1.0, "kind": HOSTILE, HOSTILE: HOSTILE})
    run.metrics([{"phase": "rl", "step": 0, "time": 1.0, "reward": 0.0, "memory": {HOSTILE: 1e6, "$\\frac": 2e6}}])
    page = page_of(run)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert HOSTILE in page.text("film")
    assert HOSTILE in page.text("#memory")
    assert page.source.count("</style>") == 1 + page.source.count("<style type")


def test_a_lone_surrogate_does_not_stop_the_page(run: RunWriter) -> None:
    run.rollouts(0, [run.rollout(0, expected="A", answer="\ud800")])
    assert "answered ?" in page_of(run).text("film")


def test_a_missing_image_is_a_red_tile_and_counted(run: RunWriter) -> None:
    rollout = run.rollout(0, expected="AB")
    first = rollout["images"][0]
    run.stored(first["sha256"]).unlink()
    run.rollouts(0, [rollout])
    page = page_of(run)
    assert page.text("fault") == "image missing"
    assert page.text("#faults").startswith("1 image on this page missing or damaged")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n torn", b"x" * 400])
def test_a_damaged_image_is_a_red_tile(run: RunWriter, content: bytes) -> None:
    rollout = run.rollout(0, expected="A")
    run.stored(rollout["images"][0]["sha256"]).write_bytes(content)
    run.rollouts(0, [rollout])
    page = page_of(run)
    assert page.text("fault") == "image damaged"
    assert len(page.having("picture")) == 1


@pytest.mark.parametrize("record", [None, "x", {}, {"sha256": "../../etc/passwd"}, {"sha256": 7, "width": -1}])
def test_what_is_no_reference_is_a_red_tile(run: RunWriter, record: object) -> None:
    rollout = run.rollout(0, expected="A")
    rollout["images"] = [record]
    run.rollouts(0, [rollout])
    assert page_of(run).text("fault") == "image not a reference"


@pytest.mark.parametrize("shown", [None, 3, {}, {"image": 7}, {"image": -1}, {"image": "0"}])
def test_what_is_no_row_of_the_table_is_a_red_tile(run: RunWriter, shown: object) -> None:
    rollout = run.rollout(0, expected="A")
    rollout["turns"][0]["images"] = [shown]
    run.rollouts(0, [rollout])
    assert page_of(run).text("fault") == "image not a reference"


def test_the_branch_that_ended_last_is_shown(run: RunWriter) -> None:
    rollout = run.rollout(0, expected="AB")
    dropped = {"parent": 0, "role": "answer", "text": "dropped", "images": []}
    rollout["turns"].insert(1, dropped)
    rollout["turns"][2]["parent"] = 0
    run.rollouts(0, [rollout])
    page = page_of(run)
    assert "dropped" not in page.text("film")
    assert "1 more turn" in page.text("gap")


@pytest.mark.parametrize("parent", [0, 1, 2, None, "x"])
def test_turns_in_a_circle_end(run: RunWriter, parent: object) -> None:
    rollout = run.rollout(0, expected="A")
    rollout["turns"][0]["parent"] = parent
    run.rollouts(0, [rollout])
    assert page_of(run).text("film")


def test_without_its_store_every_image_is_missing(finished: RunWriter) -> None:
    shutil.rmtree(finished.path / "assets")
    page = page_of(finished)
    assert page.text("#faults").startswith("4 images on this page")
    assert not (finished.path / "assets").exists()


def test_a_run_that_was_moved_keeps_its_images(finished: RunWriter, tmp_path: Path) -> None:
    moved = finished.path.rename(tmp_path / "elsewhere")
    assert page_of(RunWriter(moved)).text("fault") == ""


def test_images_are_read_from_the_store_the_run_was_given(finished: RunWriter, tmp_path: Path) -> None:
    (finished.path / "assets" / "images").rename(tmp_path / "codeword-images")
    finished.config(multimodal={"store": str(tmp_path / "codeword-images")})
    assert page_of(finished).text("fault") == ""


def test_tokens_are_tinted_by_probability_and_say_more(run: RunWriter) -> None:
    rollout = run.rollout(0, expected="A")
    rollout["turns"][1] |= {"token_texts": ["A", "\n", "", "B"], "logprobs": [0.0, -0.6931472, None], "version": 12}
    run.rollouts(0, [rollout])
    tokens = page_of(run).having("token")
    assert [one.get("style") for one in tokens] == ["--p:1.0", "--p:0.5", None, None]
    assert tokens[1]["title"] == '"\\n", probability 0.500, log-probability \N{MINUS SIGN}0.6931, version 12'


def test_the_best_and_the_worst_are_found(run: RunWriter) -> None:
    for step in (0, 5, 10):
        rows = [run.rollout(step, place, expected="AB", answer="BA") for place in range(30)]
        rows[17] = run.rollout(step, 17, expected="AB", answer="AB")
        run.rollouts(step, rows)
    page = page_of(run)
    assert "First recorded step, 0" in page.text("h3")
    assert "Last recorded step, 10" in page.text("h3")
    assert "step_10/prompt_2/rollout_1" in page.text("name")
    assert len(page.having("film")) == 24
    names = re.findall(r"step_\d+/prompt_\d+/rollout_\d+", page.text("name"))
    assert len(set(names)) == 24


def test_long_turns_are_cut_and_say_so(run: RunWriter) -> None:
    rollout = run.rollout(0, expected="A")
    rollout["turns"][0] |= {"text": "x" * 50_000, "images": []}
    rollout["turns"][1] |= {"token_texts": ["y"] * 5_000, "logprobs": [-1.0] * 5_000}
    rollout["turns"] = [turn | {"parent": number - 1} for number, turn in enumerate(rollout["turns"] * 40)]
    run.rollouts(0, [rollout])
    page = page_of(run)
    assert "47,600 characters left out" in page.text("gap")
    assert "4,600 more tokens left out" in page.text("gap")
    assert "56 more turns" in page.text("gap")


@pytest.mark.parametrize(
    "rollout", [{}, {"turns": 3}, {"turns": [None, {}]}, {"reward": "x", "metrics": 1, "name": []}]
)
def test_a_rollout_that_lacks_its_parts_is_shown_as_it_is(run: RunWriter, rollout: dict[str, object]) -> None:
    run.rollouts(0, [{"step": 0, **rollout}])
    assert len(page_of(run).having("film")) == 1
