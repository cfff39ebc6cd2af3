"""Somebody has the engine open URLs: files of its machine, services near it, images that are bombs.

A URL in a request is opened by the server, with the server's rights and in the server's network. What comes
back, an answer or even an error, tells what is there. So of files only the store's own images are read,
nothing is fetched unless an engine was told to, and each part has its one placeholder. (A vLLM that is told
`"only_references": true` takes no content parts at all. Without that they are vLLM's: it opens what
`--allowed-local-media-path` allows, connects to any host unless `--allowed-media-domains` names some, and
answers 500 where that fails.)
"""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from body import Body
from target import Target, main
from verdict import Answer, Outcome

from tests.store.bombs import hostile_images

BOMBS = 40
"""Of the bombs, each such one is sent."""


class About:
    """Right is a 4xx that names the parts."""

    def wrong(self, answer: Answer) -> str:
        if not 400 <= answer.status < 500:
            return "it is not refused"
        field = str(answer.error.get("param"))
        return "" if "content_parts" in field else f"its refusal is about {field}"


def attack(target: Target) -> Iterator[Outcome]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        for name, url in _urls(target, port).items():
            yield target.send(name, _asking(target, [{"type": "image_url", "url": url}]), About())
        yield Outcome("who was called", f"port {port}", Answer(200, ""), _called(listener))
    good = {"type": "image_url", "url": target.picture(0).uri}
    for name, parts in {
        "no url": [{"type": "image_url"}],
        "a url that is a number": [good | {"url": 7}],
        "a url that is an object": [good | {"url": {"url": good["url"]}}],
        "no type, no url": [{}],
        "None": [None],
        "a text": ["x"],
        "a video": [{"type": "video_url", "url": "data:video/mp4;base64,AAAA"}],
        "audio": [{"type": "audio_url", "url": "data:audio/wav;base64,AAAA"}],
        "a type that is none": [good | {"type": "file"}],
        "a uuid that is a number": [good | {"uuid": 7}],
        "the uuid of another image": [good | {"uuid": f"{'0' * 64}-{target.family.recipe}"}],
        "a part too many": [good, good],
        "no list": good,
        "a text instead of a list": "x",
    }.items():
        yield target.send(name, _asking(target, parts), About())
    yield target.send("2,000 parts and one placeholder", _asking(target, [good] * 2_000), About())
    yield target.send("a part and no placeholder", target.request([]) | {"content_parts": [good]}, About())
    yield target.send("parts and references", target.good() | {"content_parts": [good, good]}, Both())
    for number, (name, data) in enumerate(hostile_images()):
        if number % BOMBS == 0:
            url = "data:image/png;base64," + base64.b64encode(data).decode()
            yield target.send(f"a bomb inside: {name}", _asking(target, [good | {"url": url}]), About())


class Both(About):
    """vLLM finds out first."""

    def wrong(self, answer: Answer) -> str:
        return "" if "content_parts" in answer.text and 400 <= answer.status < 500 else super().wrong(answer)


def _urls(target: Target, port: int) -> dict[str, Any]:
    root = target.store_dir.as_uri()
    return {
        "a file of the machine": "file:///etc/hostname",
        "a file that never ends": "file:///dev/zero",
        "out of the store": f"{root}/../secret.png",
        "out of the store, encoded": f"{root}/%2e%2e/secret.png",
        "the store itself": root,
        "another host's file": "file://127.0.0.1/etc/hostname",
        "a plain path": "/etc/hostname",
        "a service near the server": f"http://127.0.0.1:{port}/x.png",
        "the same, by name": f"http://localhost:{port}/x.png",
        "the same, as a number": f"http://2130706433:{port}/x.png",
        "the same, in capitals": f"HTTP://127.0.0.1:{port}/x.png",
        "the same, over TLS": f"https://127.0.0.1:{port}/x.png",
        "the cloud's own address": "http://169.254.169.254/latest/meta-data/",
        "another scheme": f"gopher://127.0.0.1:{port}/_x",
        "no scheme": "x",
        "nothing": "",
        "data that is no image": "data:text/html;base64,PHNjcmlwdD4=",
        "data that is no base64": "data:image/png;base64,%%%",
        "data without end": "data:image/png;base64," + "A" * (3 << 20),
    }


def _asking(target: Target, parts: Any) -> Body:
    """One image's prompt with one placeholder, as an engine that expands by itself wants it."""
    body = target.request([target.picture(0)])
    pad = target.family.placeholders.image
    runs = [(token, list(run)) for token, run in groupby(body["token_ids"])]
    del body["features"]
    body["token_ids"] = [one for token, run in runs for one in (run[:1] if token == pad else run)]
    return body | {"content_parts": parts}


def _called(listener: socket.socket) -> str:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return ""
    return "the server connected to it"


if __name__ == "__main__":
    main(attack)
