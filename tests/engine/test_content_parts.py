"""Images by URL, as stock clients send them: the same answer as by references, and nothing opened that is not ours."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from filmroll.engine.images.content import MAX_IMAGES, in_references
from filmroll.errors import ImageSourceError, RequestError
from filmroll.families import load_family
from filmroll.render import Renderer
from filmroll.store import HttpSources, open_store
from filmroll.wire.generate import ContentPart, GenerateRequest, SamplingParams
from tests.conftest import Served
from tests.engine.asking import (
    GENERATE,
    asks,
    by_parts,
    by_reference,
    data_uri,
    generated,
    picture,
    refused,
    same,
    stored,
)
from tests.store.bombs import announced

GREEDY = {"temperature": 0, "max_tokens": 6}


def test_parts_say_what_references_say(served: Served, client: httpx.Client, writer: Renderer) -> None:
    images = [stored(served, 1), stored(served, 2, width=96), stored(served, 1)]
    prompt = asks(writer, *images)
    expected = generated(client, by_reference(prompt, **GREEDY))
    names = [f"{image.sha256}-{writer.family.recipe}" for image in images]
    urls = [image.uri for image in images]
    by_urls = by_parts(prompt, urls, **GREEDY)
    named = by_parts(prompt, urls, **GREEDY)
    named["content_parts"] = [part | {"uuid": name} for part, name in zip(named["content_parts"], names, strict=True)]
    inline = by_parts(prompt, [data_uri(picture(1)), data_uri(picture(2, width=96)), data_uri(picture(1))], **GREEDY)
    for request in (by_urls, named, inline):
        same(expected, generated(client, request))
    assert expected["prompt_token_ids"] == prompt.expanded().token_ids.tolist()


def test_an_image_that_a_request_brings_is_kept_once(served: Served, client: httpx.Client, writer: Renderer) -> None:
    def files() -> int:
        return sum(path.is_file() for path in served.store.rglob("*.png"))

    prompt = asks(writer, stored(served, 1), stored(served, 1))
    before = files()
    for seed in (501, 502, 502, 501):
        generated(client, by_parts(prompt, [data_uri(picture(seed))] * 2, **GREEDY))
    assert files() - before == 2


def test_it_is_the_picture_that_is_seen(client: httpx.Client, writer: Renderer) -> None:
    prompt = asks(writer, picture(1))
    one, other = (generated(client, by_parts(prompt, [data_uri(picture(seed))], **GREEDY)) for seed in (1, 2))
    assert one["choices"][0]["logprobs"] != other["choices"][0]["logprobs"]


def test_other_files_of_the_machine_are_neither_read_nor_told_from_each_other(
    served: Served, client: httpx.Client, writer: Renderer, tmp_path: Path
) -> None:
    """An image outside the store, a file that is none, and a path where nothing is: one and the same answer."""
    outside = tmp_path / "picture.png"
    picture(7).save(outside)
    inside = stored(served, 7)
    link = served.store / f"{inside.sha256[:-4]}0000.png"
    link.symlink_to(outside)
    prompt = asks(writer, inside)
    urls = (outside.as_uri(), "file:///etc/hostname", "file:///nothing/here.png", "FILE:///etc/hostname")
    answers = [refused(client.post(GENERATE, json=by_parts(prompt, [url], **GREEDY))) for url in urls]
    assert answers[1:] == answers[:-1]
    assert (answers[0]["type"], answers[0]["param"], answers[0]["index"]) == ("outside_store", "content_parts", 0)
    refused(client.post(GENERATE, json=by_parts(prompt, [link.as_uri()], **GREEDY)))
    generated(client, by_parts(prompt, [inside.uri], **GREEDY))


def flat(width: int, height: int) -> str:
    return data_uri(dict(announced(width, height))["PNG"] or b"")


def nested(depth: int) -> msgspec.Raw:
    return msgspec.Raw(b"[" * depth + b"]" * depth)


def parts(change: Any) -> Callable[[dict[str, Any]], None]:
    """Changes the request's second part, or all of them."""

    def changed(request: dict[str, Any]) -> None:
        if callable(change):
            request["content_parts"] = change(request["content_parts"])
        else:
            request["content_parts"][1] = change

    return changed


BAD: dict[str, tuple[Callable[[dict[str, Any]], None], str, str | None, int | None]] = {
    "a bomb": (parts({"url": flat(20_000, 20_000)}), "image_limit", "content_parts", 1),
    "no size": (parts({"url": flat(0, 10)}), "image_format", "content_parts", 1),
    "text as an image": (parts({"url": data_uri(b"hello")}), "image_format", "content_parts", 1),
    "another type than it says": (
        parts({"url": data_uri(picture(1)).replace("png", "jpeg")}),
        "image_format",
        "content_parts",
        1,
    ),
    "broken base64": (parts({"url": "data:image/png;base64,AA=A"}), "image_source", "content_parts", 1),
    "no base64": (parts({"url": "data:,hello"}), "image_source", "content_parts", 1),
    "http": (parts({"url": "http://127.0.0.1:1/a.png"}), "image_source", "content_parts", 1),
    "https": (parts({"url": "HTTPS://example.com/a.png"}), "image_source", "content_parts", 1),
    "a path": (parts({"url": "/etc/hostname"}), "image_source", "content_parts", 1),
    "a name": (parts({"url": "a" * 64 + ".png"}), "image_source", "content_parts", 1),
    "nothing": (parts({"url": ""}), "image_source", "content_parts", 1),
    "a bucket": (parts({"url": "s3://other/" + "a" * 64 + ".png"}), "outside_store", "content_parts", 1),
    "not stored": (lambda request: unknown(request), "image_not_found", "content_parts", 1),
    "a video": (parts({"type": "video_url", "url": flat(8, 8)}), "request", "content_parts[1].type", None),
    "no url": (parts({"type": "image_url"}), "request", "content_parts[1]", None),
    "an object as url": (parts({"url": {"url": "data:"}}), "request", "content_parts[1].url", None),
    "a text": (parts(lambda _: "data:"), "request", "content_parts", None),
    "one too many": (parts(lambda all_: [*all_, all_[0]]), "request", "content_parts", None),
    "one too few": (parts(lambda all_: all_[:1]), "request", "content_parts", None),
    "10,000": (parts(lambda all_: all_ * 5000), "request", "content_parts", None),
    "another's uuid": (
        parts(lambda all_: [all_[0], all_[1] | {"uuid": "a" * 64 + "-" + "b" * 32}]),
        "request",
        "content_parts",
        1,
    ),
    "lists in lists": (parts(nested(900)), "request", "content_parts[1]", None),
    "lists beyond measure": (parts({"url": "data:", "more": nested(20_000)}), "request", None, None),
}


def unknown(request: dict[str, Any]) -> None:
    folder = request["content_parts"][0]["url"].rpartition("/")[0].rpartition("/")[0]
    request["content_parts"][1] = {"url": f"{folder}/ff/{'f' * 64}.png"}


@pytest.mark.parametrize("name", BAD)
def test_bad_parts_are_refused_and_the_next_request_succeeds(
    served: Served, client: httpx.Client, writer: Renderer, name: str
) -> None:
    change, kind, param, index = BAD[name]
    images = [stored(served, 1), stored(served, 2)]
    good = by_parts(asks(writer, *images), [image.uri for image in images], max_tokens=1)
    request = msgspec.json.decode(msgspec.json.encode(good))
    change(request)
    error = refused(client.post(GENERATE, content=msgspec.json.encode(request)))
    assert (error["type"], error["param"], error["index"]) == (kind, param, index), error
    generated(client, good)


def test_a_thousand_images_at_most_and_no_more_tokens_than_the_model_takes(served: Served, writer: Renderer) -> None:
    family, store = writer.family, writer.store
    pad, url = family.placeholders.pad, stored(served, 1, width=512, height=512).uri

    def request(count: int) -> GenerateRequest:
        return GenerateRequest([1, pad] * count, SamplingParams(), content_parts=[ContentPart(url)] * count)

    taken = in_references(request(4), family, store, 4 * 257)
    assert len(taken.token_ids) == 4 * 257
    with pytest.raises(RequestError, match="up to this one the prompt has 1028 tokens") as caught:
        in_references(request(4), family, store, 4 * 257 - 1)
    assert caught.value.index == 3
    with pytest.raises(RequestError, match=f"at most {MAX_IMAGES}"):
        in_references(request(MAX_IMAGES + 1), family, store, 2**20)


def test_urls_are_fetched_only_where_the_store_was_opened_for_it(tiny_model: Path, tmp_path: Path) -> None:
    """And even then nothing inside the machine's own network is connected to."""
    family = load_family(tiny_model)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        part = ContentPart(f"http://127.0.0.1:{server.getsockname()[1]}/a.png")
        request = GenerateRequest([1, family.placeholders.pad], SamplingParams(), content_parts=[part])
        for http in (None, HttpSources(schemes=("http", "https"))):
            with pytest.raises(ImageSourceError):
                in_references(request, family, open_store(tmp_path, http=http), 2**20)
        with pytest.raises(TimeoutError):
            server.accept()
