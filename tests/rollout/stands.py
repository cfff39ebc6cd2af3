"""Small real HTTP servers that speak the engines' protocol, and misbehave where a test tells them to."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from aiohttp import web

from filmroll.families import Family
from filmroll.render import Rendered, Renderer
from filmroll.wire.capabilities import ROUTE
from filmroll.wire.reference import digest_of

GENERATE = "/inference/v1/generate"
Body = dict[str, Any]
Behaviour = Callable[["Stand", web.Request, Body], Awaitable[web.StreamResponse]]
"""What becomes of one generate request."""


@dataclass(frozen=True)
class Asked:
    """One request as the server saw it."""

    path: str
    body: Body
    raw: bytes
    session: str
    at: float


def capabilities(seeing: Family, **changes: Any) -> Body:
    """As a vLLM with the plugin would say it."""
    return {
        "engine": "vllm",
        "engine_version": "0",
        "model": "tiny",
        "max_model_len": 1024,
        "ways": ["references", "content_parts"],
        "family": seeing.name,
        "fingerprint": seeing.fingerprint,
        "recipes": [seeing.recipe],
        "weights": True,
    } | changes


def error(status: int, **wire: Any) -> web.Response:
    return web.json_response({"error": {"message": "no", "type": "some", "code": status} | wire}, status=status)


@dataclass
class Stand:
    """Answers every generate request with token 5; `script` says what becomes of the next ones instead."""

    says: Body | None = None
    """Its capabilities; None is a stock vLLM, which has no such route."""
    script: list[Behaviour] = field(default_factory=list)
    refuses: set[int] = field(default_factory=set)
    """Versions of weights that it does not take."""
    failing: int = 0
    """How many of the next updates it fails at."""
    version: int = 0
    asked: list[Asked] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    left: int = 0
    """Requests whose client went away before the answer."""
    port: int = 0
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """As a new process would: at the same port, knowing nothing."""
        self.version, self.seen = 0, set()
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get(ROUTE, self._say)
        app.router.add_post(GENERATE, self._generate)
        app.router.add_post("/inference/v1/update_weights", self._update)
        app.router.add_get("/inference/v1/weight_info", self._info)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def generated(self) -> list[Asked]:
        return [one for one in self.asked if one.path == GENERATE]

    @property
    def paths(self) -> list[str]:
        return [one.path.rpartition("/")[2] for one in self.asked]

    async def _note(self, request: web.Request) -> Body:
        raw = await request.read()
        body = json.loads(raw) if raw else {}
        session = request.headers.get("x-session-id", "")
        self.asked.append(Asked(request.path, body, raw, session, time.monotonic()))
        return body

    async def _say(self, request: web.Request) -> web.StreamResponse:
        await self._note(request)
        return error(404) if self.says is None else web.json_response(self.says)

    async def _info(self, request: web.Request) -> web.StreamResponse:
        await self._note(request)
        return web.json_response({"version": self.version})

    async def _update(self, request: web.Request) -> web.StreamResponse:
        version = (await self._note(request))["version"]
        if version in self.refuses:
            return error(400, type="weights")
        if self.failing:
            self.failing -= 1
            return error(500)
        self.version = version
        return web.json_response({"version": version})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await self._note(request)
        behave = self.script.pop(0) if self.script else answer
        try:
            return await behave(self, request, body)
        except asyncio.CancelledError:
            self.left += 1
            raise


async def answer(stand: Stand, request: web.Request, body: Body) -> web.StreamResponse:
    """As it should; references may be named by the hash of their text once they were seen."""
    features = body.get("features") or {"mm_hashes": {"image": []}, "kwargs_data": {"image": []}}
    pairs = list(zip(features["mm_hashes"]["image"], features["kwargs_data"]["image"], strict=True))
    for index, (digest, text) in enumerate(pairs):
        if text is None and digest not in stand.seen:
            return error(404, type="reference_unknown", param="features.kwargs_data.image", index=index)
    stand.seen |= {digest_of(text) for _, text in pairs if text is not None}
    return web.json_response(completed(stand, len(pairs)))


def completed(stand: Stand, images: int, **changes: Any) -> Body:
    """An answer of one token, with a receipt for so many images."""
    choice = {
        "index": 0,
        "token_ids": [5],
        "logprobs": {"content": [{"token_id": 5, "logprob": -0.5}]},
        "finish_reason": "stop",
        "weight_versions": [{"version": str(stand.version), "start": 0, "end": 1}],
    } | changes.pop("choice", {})
    receipt = dict.fromkeys(("referenced", "verified", "decoded", "consumed"), images)
    return {"request_id": "r", "choices": [choice], "receipt": receipt} | changes


def saying(**changes: Any) -> Behaviour:
    """An answer for one image, with something else in it."""

    async def behave(stand: Stand, request: web.Request, body: Body) -> web.StreamResponse:
        return web.json_response(completed(stand, 1, **changes))

    return behave


def expanding(prompt: Rendered, **changes: Any) -> Behaviour:
    """As stock vLLM: the expanded prompt comes back, and no receipt."""

    async def behave(stand: Stand, request: web.Request, body: Body) -> web.StreamResponse:
        expanded = prompt.expanded()
        spans = [
            {"offset": offset, "length": image.tokens}
            for offset, image in zip(expanded.offsets, prompt.images, strict=True)
        ]
        told = {"prompt_token_ids": expanded.token_ids.tolist(), "mm_placeholders": {"image": spans}, "receipt": None}
        return web.json_response(completed(stand, 0, **(told | changes)))

    return behave


def refusing(status: int, *, headers: dict[str, str] | None = None, **wire: Any) -> Behaviour:
    async def behave(stand: Stand, request: web.Request, body: Body) -> web.StreamResponse:
        response = error(status, **wire)
        response.headers.update(headers or {})
        return response

    return behave


async def drop(stand: Stand, request: web.Request, body: Body) -> web.StreamResponse:
    """The connection breaks before the answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def half(stand: Stand, request: web.Request, body: Body) -> web.StreamResponse:
    """The connection breaks in the middle of the answer."""
    response = web.StreamResponse(headers={"content-length": "4096", "content-type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"request_id": "r", "choices": [')
    assert request.transport is not None
    request.transport.close()
    return response


async def never(stand: Stand, request: web.Request, body: Body) -> web.StreamResponse:
    """No answer comes as long as anybody waits for it."""
    await asyncio.sleep(3600)
    return web.Response()


async def unstructured(stand: Stand, request: web.Request, body: Body) -> web.StreamResponse:
    """What stands before a server that is not there says."""
    return web.Response(status=502, text="<html>Bad Gateway</html>")


def prompt_of(renderer: Renderer, *sizes: tuple[int, int], text: str = "look") -> Rendered:
    """One message with a picture of each size, width and height."""
    pictures = [
        {"type": "image", "image": np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)}
        for number, (width, height) in enumerate(sizes)
    ]
    return renderer.render([{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}])


def bodies(asked: Sequence[Asked]) -> set[bytes]:
    return {one.raw for one in asked}
