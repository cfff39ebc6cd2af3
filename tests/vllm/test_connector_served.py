"""vLLM's own ways to be given an image by url, with filmroll's connector: read from the store, compared, refused."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from filmroll.image import ImageRef
from tests.vllm.conversations import Body, Desk
from tests.vllm.sabotage import PATH
from tests.vllm.serving import Answer, Server, streamed
from tests.vllm.test_agreement import assert_same
from tests.vllm.test_refusals import SPOILED

pytestmark = pytest.mark.vllm

BLACK = Image.new("RGB", (64, 64))


def black() -> str:
    told = io.BytesIO()
    BLACK.save(told, "PNG")
    return f"data:image/png;base64,{base64.b64encode(told.getvalue()).decode()}"


def chat(server: Server, url: str, uuid: str | None = None) -> Answer:
    parts: list[Body] = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Which?"}]
    if uuid is not None:
        parts[0]["uuid"] = uuid
    body = {"model": "tiny", "messages": [{"role": "user", "content": parts}], "max_tokens": 4, "temperature": 0}
    return server.post("/v1/chat/completions", body | {"logprobs": True})


def asked(desk: Desk, pictures: list[ImageRef], **part: Any) -> Body:
    """A request by urls, of which the last part says something else."""
    body = desk.with_parts(desk.request(pictures), pictures)
    body["content_parts"][-1] = {key: value for key, value in (body["content_parts"][-1] | part).items() if value}
    return body


@pytest.fixture
def going_on(vllm: Server, desk: Desk) -> Iterator[None]:
    """After the test the same processes answer a good request."""
    before = vllm.processes()
    yield
    assert vllm.generate(asked(desk, [desk.picture(1)])).status == 200
    assert vllm.processes() == before


@pytest.mark.usefixtures("going_on")
@pytest.mark.parametrize("name", SPOILED)
def test_stored_images_that_cannot_be_had_are_refused_by_either_endpoint(vllm: Server, desk: Desk, name: str) -> None:
    spoil, status, code = SPOILED[name]
    # One for each endpoint: what is damaged is set aside when it is first read.
    picture, other = (desk.picture(400 + 5 * place + list(SPOILED).index(name)) for place in range(2))
    body = asked(desk, [desk.picture(1), picture])
    with spoil(desk, picture):
        answer = vllm.generate(body)
    with spoil(desk, other):
        by_chat = chat(vllm, other.uri)
    assert (answer.status, by_chat.status) == (status, status)
    error = answer.error
    assert (error["type"], error["code"], error["param"]) == (code, status, "content_parts")
    # A store that is down has none of them: whichever is read first is named.
    assert error["index"] in ((0, 1) if status == 503 else (1,))
    assert by_chat.error["message"] == error["message"].replace(picture.sha256, other.sha256)
    assert str(desk.store_dir) not in json.dumps([answer.body, by_chat.body])
    assert answer.headers.get("retry-after") == ("1" if status == 503 else None)


Claim = Callable[[Desk, ImageRef, ImageRef, str], Body]
"""What is said of the second picture, by these two and the place of the store."""

WRONG: dict[str, tuple[Claim, str]] = {
    "uuid of another image": (lambda d, _, other, __: {"uuid": f"{other.sha256}-{d.family.recipe}"}, "request"),
    "uuid of another recipe": (lambda _, one, __, ___: {"uuid": f"{one.sha256}-{'0' * 32}"}, "fingerprint"),
    "uuid for a data: URI": (lambda *_: {"url": black()}, "request"),
    "uuid for a copy": (lambda d, one, *_: {"url": d.copied(one)}, "request"),
    "no image's place": (lambda _, __, ___, place: {"url": f"{place}x.png", "uuid": None}, "outside_store"),
    "above the store": (lambda _, __, ___, place: {"url": f"{place}../x.png", "uuid": None}, "outside_store"),
    "above it, escaped": (lambda _, __, ___, place: {"url": f"{place}%2e%2e/x.png", "uuid": None}, "outside_store"),
}


@pytest.mark.usefixtures("going_on")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_claims_are_refused_by_image(vllm: Server, desk: Desk, name: str) -> None:
    claim, code = WRONG[name]
    one, other = desk.picture(431), desk.picture(432)
    place = one.uri[: -len(f"{one.sha256[:2]}/{one.sha256}.png")]
    answer = vllm.generate(asked(desk, [other, one], **claim(desk, one, other, place)))
    assert (answer.status, answer.error["type"]) == (400, code)
    assert (answer.error["param"], answer.error["index"]) == ("content_parts", 1)
    assert str(desk.store_dir) not in answer.error["message"]


@pytest.mark.usefixtures("going_on")
def test_images_that_the_engine_has_lost_are_sent_again(vllm: Server, desk: Desk) -> None:
    body = asked(desk, [desk.picture(451), desk.picture(452)])
    before = vllm.generate(body)
    assert vllm.post(PATH, {}).status == 200
    again = vllm.generate(body)
    assert (again.tokens, again.logprobs) == (before.tokens, before.logprobs)
    assert vllm.post(PATH, {}).status == 200
    assert streamed(vllm.stream(body | {"stream": True})) == before.tokens


@pytest.mark.usefixtures("going_on")
def test_every_image_has_one_pad(vllm: Server, desk: Desk) -> None:
    """vLLM itself fails where there are fewer, and leaves pads without an image where there are more."""
    pictures = [desk.picture(413), desk.picture(414)]
    body = asked(desk, pictures)
    pad, expanded = desk.family.placeholders.pad, desk.request(pictures)["token_ids"]
    fewer = [token for token in body["token_ids"] if token != pad]
    for tokens in (fewer, [*body["token_ids"], pad], expanded):
        answer = vllm.generate(body | {"token_ids": tokens})
        assert (answer.status, answer.error["type"], answer.error["param"]) == (400, "request", "content_parts")


@pytest.mark.usefixtures("going_on")
@pytest.mark.parametrize("url", ["file:///etc/hostname", "file:///nowhere/x.png", "s3://bucket/x.png", "x.png"])
def test_what_is_not_the_stores_is_under_vllms_own_rules(vllm: Server, desk: Desk, url: str) -> None:
    own = asked(desk, [desk.picture(1)], url=url, uuid=None)
    for answer in (vllm.generate(own), chat(vllm, url)):
        assert answer.status == 400
        assert "/etc" not in answer.error["message"]
        assert "nowhere" not in answer.error["message"]


def test_a_uuid_alone_finds_what_vllm_has(vllm: Server, desk: Desk) -> None:
    """Without its url, nothing is fetched; an image that vLLM has not is a 400 in its own words."""
    picture, unknown = desk.picture(415), desk.picture(416)
    first = vllm.generate(asked(desk, [picture]))
    with desk.hidden(picture):
        assert_same(vllm.generate(asked(desk, [picture], url=None)), first)
    assert vllm.generate(asked(desk, [unknown], url=None)).status == 400


def test_an_image_inside_its_url_may_have_its_own_uuid(vllm: Server, desk: Desk) -> None:
    """As references of runs without a shared store have it; the bytes are compared."""
    picture = desk.picture(420)
    inside = vllm.generate(asked(desk, [picture], url=desk.data_uri(picture)))
    assert_same(inside, vllm.generate(asked(desk, [picture])))
    broken = vllm.generate(asked(desk, [picture], url=desk.data_uri(picture) + "*"))
    assert (broken.status, broken.error["param"], broken.error["index"]) == (400, "content_parts", 0)


def test_nobody_can_put_another_picture_under_a_stored_ones_name(vllm: Server, desk: Desk) -> None:
    """Not before it was seen, and not after; where the uuid is not compared, it names something else."""
    picture = desk.picture(417)
    names = [f"{picture.sha256}-{desk.family.recipe}", picture.sha256, picture.uri]
    for name in names:
        assert chat(vllm, black(), uuid=name).status == 200
    seen = vllm.generate(asked(desk, [picture]))
    for name in names:
        assert chat(vllm, black(), uuid=name).status == 200
        vllm.generate(asked(desk, [picture], url=black(), uuid=name))
    assert_same(vllm.generate(asked(desk, [picture])), seen)
    assert_same(seen, vllm.generate(desk.request([picture])))


def test_a_picture_of_a_chat_is_the_stored_one(vllm: Server, desk: Desk) -> None:
    picture = desk.picture(418)
    stored, sent = (chat(vllm, url) for url in (picture.uri, desk.data_uri(picture)))
    assert stored.body["choices"] == sent.body["choices"]
    assert chat(vllm, black()).body["choices"][0]["logprobs"] != sent.body["choices"][0]["logprobs"]


def test_streams_of_content_parts_end_whole(vllm: Server, desk: Desk) -> None:
    body = asked(desk, [desk.picture(419)])
    assert streamed(vllm.stream(body | {"stream": True})) == vllm.generate(body).tokens
