"""Whatever a request with references says wrongly is refused with code, field and image, and the server goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from filmroll.image import ImageRef
from tests.vllm.conversations import Body, Desk
from tests.vllm.serving import Server, streamed

pytestmark = pytest.mark.vllm

REFERENCES, PLACES, HASHES = (f"features.{name}.image" for name in ("kwargs_data", "mm_placeholders", "mm_hashes"))
Change = Callable[[Body], None]


def reference(**changed: Any) -> Change:
    """The second image's reference says something else; `filmroll` holds what is below that key."""

    def change(body: Body) -> None:
        references = body["features"]["kwargs_data"]["image"]
        said = json.loads(references[1].removeprefix("mmraw:"))
        own = said["filmroll"] | changed.get("filmroll", {})
        references[1] = "mmraw:" + json.dumps(said | changed | {"filmroll": own})

    return change


def instead(text: str | None) -> Change:
    return lambda body: body["features"]["kwargs_data"]["image"].__setitem__(1, text)


def place(**moved: int) -> Change:
    """The second image's placeholder is moved by so much."""

    def change(body: Body) -> None:
        span = body["features"]["mm_placeholders"]["image"][1]
        for name, by in moved.items():
            span[name] += by

    return change


def digest(text: str) -> Change:
    return lambda body: body["features"]["mm_hashes"]["image"].__setitem__(1, text)


def token(position: int, value: int) -> Change:
    return lambda body: body["token_ids"].__setitem__(position, value)


def swap(body: Body) -> None:
    body["features"]["kwargs_data"]["image"].reverse()


def as_video(body: Body) -> None:
    body["features"] = {name: {"video": lists["image"]} for name, lists in body["features"].items()}


def other_digest(body: Body) -> None:
    digest("0" * 64)(body)
    reference(mm_hash="0" * 64)(body)


def overlap(body: Body) -> None:
    spans = body["features"]["mm_placeholders"]["image"]
    spans[1]["offset"] = spans[0]["offset"]


def too_long(body: Body) -> None:
    body["token_ids"] += [1] * 1024


FORGED: dict[str, tuple[Change, int, str, str | None, int | None]] = {
    "grid": (reference(payload={"image_grid_thw": [[1, 2, 2]]}), 400, "grid", REFERENCES, 1),
    "size": (reference(filmroll={"width": 101}), 400, "grid", REFERENCES, 1),
    "tokens": (reference(filmroll={"tokens": 999}), 400, "request", PLACES, 1),
    "fingerprint": (reference(fingerprint="0" * 32), 400, "fingerprint", REFERENCES, 1),
    "recipe": (reference(filmroll={"recipe": "0" * 32}), 400, "fingerprint", REFERENCES, 1),
    "family": (reference(family="kimi_k25"), 400, "unknown_family", REFERENCES, 1),
    "number of bytes": (reference(filmroll={"nbytes": 7}), 400, "image_damaged", REFERENCES, 1),
    "place outside": (reference(raw_image_uri="file:///etc/hostname.png"), 400, "outside_store", REFERENCES, 1),
    "digest": (other_digest, 400, "outside_store", REFERENCES, 1),
    "hash": (digest("0" * 64), 400, "request", HASHES, 1),
    "no reference": (instead("mmraw:%"), 400, "reference_format", REFERENCES, 1),
    "tensors among references": (instead("gqVpbWFnZQ=="), 400, "reference_format", REFERENCES, 1),
    "nothing among references": (instead(None), 404, "reference_unknown", HASHES, 1),
    "swapped references": (swap, 400, "request", HASHES, 0),
    "another modality": (as_video, 400, "request", "features.kwargs_data.video", 0),
    "offset": (place(offset=-1), 400, "placement", PLACES, 1),
    "length": (place(length=-1), 400, "request", PLACES, 1),
    "stray placeholder": (token(0, -1), 400, "placement", PLACES, None),
    "number beyond all": (token(0, 2**70), 400, "request", "token_ids[0]", None),
    "long prompt": (too_long, 400, "request", "token_ids", None),
}


@pytest.fixture
def going_on(vllm: Server, desk: Desk) -> Iterator[None]:
    """After the test the same processes answer a good request."""
    before = vllm.processes()
    yield
    assert vllm.generate(desk.request([desk.picture(1)])).status == 200
    assert vllm.processes() == before


@pytest.mark.usefixtures("going_on")
@pytest.mark.parametrize("name", FORGED)
def test_bad_references_are_refused_and_the_next_one_succeeds(vllm: Server, desk: Desk, name: str) -> None:
    change, status, code, field, index = FORGED[name]
    body = desk.request([desk.picture(3), desk.picture(1)])
    change(body)
    body["token_ids"] = [desk.family.placeholders.image if one == -1 else one for one in body["token_ids"]]
    answer = vllm.generate(body)
    assert answer.status == status
    assert (answer.error["type"], answer.error["code"]) == (code, status)
    assert (answer.error["param"], answer.error["index"]) == (field, index)
    said = answer.error["message"]
    assert said
    for private in (str(desk.store_dir), str(desk.model), "Traceback", "/etc"):
        assert private not in said


def shorter(name: str) -> Change:
    return lambda body: body["features"][name]["image"].pop()


def negative(body: Body) -> None:
    body["features"]["mm_placeholders"]["image"][1]["offset"] = -1


VLLM_FIRST: dict[str, tuple[Change, str, int | None]] = {
    "overlapping": (overlap, PLACES, 1),
    "beyond the prompt": (place(offset=10**6), PLACES, 1),
    "below it": (negative, "features.mm_placeholders[...][1].offset", 1),
    "fewer references": (shorter("kwargs_data"), REFERENCES, None),
    "fewer hashes": (shorter("mm_hashes"), PLACES, None),
    "fewer placeholders": (shorter("mm_placeholders"), PLACES, None),
    "a modality less": (lambda body: body["features"]["mm_hashes"].clear(), "features.mm_placeholders", None),
    "a negative token": (token(0, -5), "token_ids[0]", None),
    "no tokens": (lambda body: body["token_ids"].clear(), "token_ids", None),
}


@pytest.mark.usefixtures("going_on")
@pytest.mark.parametrize("name", VLLM_FIRST)
def test_what_vllm_checks_first_is_refused_in_our_words(vllm: Server, desk: Desk, name: str) -> None:
    change, field, index = VLLM_FIRST[name]
    body = desk.request([desk.picture(3), desk.picture(1)])
    change(body)
    answer = vllm.generate(body)
    assert (answer.status, answer.error["type"], answer.error["code"]) == (400, "request", 400)
    assert (answer.error["param"], answer.error["index"]) == (field, index)


@pytest.mark.usefixtures("going_on")
def test_what_has_no_references_is_refused_in_vllms_words(vllm: Server, desk: Desk) -> None:
    body = desk.request([]) | {"sampling_params": {"temperature": "warm"}}
    answer = vllm.generate(body)
    assert (answer.status, answer.error["type"]) == (400, "Bad Request")


@pytest.mark.usefixtures("going_on")
@pytest.mark.parametrize("pads", [0, 1, 3])
def test_pads_and_content_parts_must_add_up(vllm: Server, desk: Desk, pads: int) -> None:
    pictures = [desk.picture(3), desk.picture(1)]
    body = desk.with_parts(desk.request(pictures), pictures)
    pad = desk.family.placeholders.image
    body["token_ids"] = [one for one in body["token_ids"] if one != pad] + [pad] * pads
    answer = vllm.generate(body)
    assert (answer.status, answer.error["type"], answer.error["param"]) == (400, "request", "content_parts")


def stored(picture: ImageRef) -> Path:
    return Path(unquote(urlsplit(picture.uri).path))


@contextmanager
def missing(_desk: Desk, picture: ImageRef) -> Iterator[None]:
    stored(picture).unlink()
    yield


@contextmanager
def linked(desk: Desk, picture: ImageRef) -> Iterator[None]:
    """A symbolic link to the very bytes."""
    elsewhere = desk.store_dir.with_name("elsewhere.png")
    stored(picture).rename(elsewhere)
    stored(picture).symlink_to(elsewhere)
    yield


@contextmanager
def fifo(_desk: Desk, picture: ImageRef) -> Iterator[None]:
    """Whoever opens it waits for a writer that never comes."""
    stored(picture).unlink()
    os.mkfifo(stored(picture))
    yield


@contextmanager
def damaged(_desk: Desk, picture: ImageRef) -> Iterator[None]:
    data = bytearray(stored(picture).read_bytes())
    data[-20] ^= 1
    stored(picture).chmod(0o644)
    stored(picture).write_bytes(data)
    yield


@contextmanager
def store_down(desk: Desk, _picture: ImageRef) -> Iterator[None]:
    """Its folder is a file."""
    aside = desk.store_dir.with_name("store-aside")
    desk.store_dir.rename(aside)
    desk.store_dir.touch()
    try:
        yield
    finally:
        desk.store_dir.unlink()
        aside.rename(desk.store_dir)


SPOILED = {
    "missing": (missing, 404, "image_not_found"),
    "linked": (linked, 400, "image_damaged"),
    "fifo": (fifo, 400, "image_damaged"),
    "damaged": (damaged, 400, "image_damaged"),
    "store down": (store_down, 503, "store_unavailable"),
}


@pytest.mark.usefixtures("going_on")
@pytest.mark.parametrize("name", SPOILED)
def test_images_that_cannot_be_had_are_refused(vllm: Server, desk: Desk, name: str) -> None:
    spoil, status, code = SPOILED[name]
    # One that nobody has seen before: vLLM would not ask for another.
    picture = desk.picture(200 + list(SPOILED).index(name))
    body = desk.request([desk.picture(1), picture])
    with spoil(desk, picture):
        answer = vllm.generate(body)
    assert (answer.status, answer.error["type"], answer.error["param"], answer.error["index"]) == (
        status,
        code,
        REFERENCES,
        1,
    )
    assert str(desk.store_dir) not in json.dumps(answer.body)
    assert answer.headers.get("retry-after") == ("1" if status == 503 else None)


@pytest.mark.usefixtures("going_on")
def test_streams_are_refused_before_they_begin_and_else_end_whole(vllm: Server, desk: Desk) -> None:
    body = desk.request([desk.picture(2)])
    assert streamed(vllm.stream(body | {"stream": True})) == vllm.generate(body).tokens
    digest("0" * 64)(two := desk.request([desk.picture(2), desk.picture(1)]) | {"stream": True})
    assert vllm.generate(two).status == 400
