"""The embedded engine over HTTP: its routes, and the process that serves them.

Whatever is sent, the answer is structured and the server goes on.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from filmroll.engine.chat.chat import Chat
from filmroll.engine.http import answering, http_error, read_body, read_version, while_connected
from filmroll.wire.capabilities import ROUTE as CAPABILITIES
from filmroll.wire.capabilities import Capabilities
from filmroll.wire.generate import encode, read_request

if TYPE_CHECKING:
    from typing import Unpack

    from filmroll.engine.embedded.engine import EmbeddedEngine
    from filmroll.engine.images.resolver import Bounds
    from filmroll.store.store import Store

KEEP_ALIVE_S = 120
"""Longer than a training step: a client that comes back finds its connections open."""
GRACE_S = 10
"""How long requests under way may still take when the server is told to stop."""


class EngineLimits(TypedDict, total=False):
    """The keyword arguments of EmbeddedEngine and Materializer that a process may set."""

    max_batch: int
    batch_wait_ms: float
    max_model_len: int | None
    threads: int | None
    device: str
    dtype: str
    seed: int | None
    bounds: Bounds


def build_app(engine: EmbeddedEngine) -> Starlette:
    """The application that serves an engine; who starts the engine also closes it."""

    chat = Chat(engine)

    async def generate(request: Request) -> Response:
        wanted = read_request(await read_body(request))
        answer = await while_connected(request, engine.generate(wanted))
        return Response(encode(answer), media_type="application/json")

    async def update_weights(request: Request) -> Response:
        return JSONResponse({"version": await engine.update_weights(await read_version(request))})

    async def weight_info(_request: Request) -> Response:
        return JSONResponse({"version": engine.version})

    async def capabilities(_request: Request) -> Response:
        return Response(msgspec.json.encode(_capabilities(engine)), media_type="application/json")

    async def models(_request: Request) -> Response:
        return JSONResponse(_models(engine))

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(_request: Request) -> Response:
        return PlainTextResponse(engine.statistics.text(), media_type="text/plain; version=0.0.4")

    routes = [
        Route("/inference/v1/generate", answering(generate), methods=["POST"]),
        Route("/inference/v1/update_weights", answering(update_weights), methods=["POST"]),
        Route("/inference/v1/weight_info", answering(weight_info)),
        Route(CAPABILITIES, answering(capabilities)),
        Route("/v1/models", answering(models)),
        Route("/v1/chat/completions", answering(chat.completions), methods=["POST"]),
        Route("/health", answering(health)),
        Route("/metrics", answering(metrics)),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: http_error})


def serve(
    model_dir: Path,
    store: Store,
    weights_dir: Path | None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    name: str,
    on_ready: Callable[[str], None],
    cache_bytes: int | None = None,
    features_dir: Path | None = None,
    **limits: Unpack[EngineLimits],
) -> None:
    """Serve a checkpoint until SIGTERM or SIGINT, then return; an error if its GPU fails before.

    The address is taken first, so that a port in use is known before a model is loaded; `on_ready`
    gets the base URL once requests are answered. `features_dir` is where processed images are kept for
    other processes.
    """
    from filmroll.engine.embedded.engine import EmbeddedEngine
    from filmroll.families import load_family
    from filmroll.materialize.features import Features
    from filmroll.materialize.materializer import CACHE_BYTES, Materializer

    with socket.create_server((host, port)) as listener:
        url = f"http://{_authority(listener)}"
        family = load_family(model_dir)
        kept = CACHE_BYTES if cache_bytes is None else cache_bytes
        features = None if features_dir is None else Features(features_dir, family)
        materializer = Materializer(store, family, cache_bytes=kept, features=features)
        with EmbeddedEngine(model_dir, family, materializer, weights_dir=weights_dir, name=name, **limits) as engine:
            run_app(build_app(engine), listener, lambda: on_ready(url), engine.ended)
        engine.ended.result()


def run_app(app: Starlette, listener: socket.socket, on_ready: Callable[[], None], ended: Future[None]) -> None:
    """Serve an application on a socket that listens, until SIGTERM or SIGINT, or until what it serves has ended."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    server = _Server(config, on_ready)
    ended.add_done_callback(lambda _: server.stop())
    server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn, which says when it is ready, and after a signal returns instead of raising it again."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    def stop(self) -> None:
        """Answer what is under way, and return."""
        self.should_exit = True

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _authority(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _capabilities(engine: EmbeddedEngine) -> Capabilities:
    return Capabilities(
        engine="filmroll",
        engine_version=version("filmroll"),
        model=engine.name,
        max_model_len=engine.max_model_len,
        ways=["references", "content_parts"],
        family=engine.family.name,
        fingerprint=engine.family.fingerprint,
        recipes=[engine.family.recipe],
        hashes=True,
        weights=engine.takes_weights,
    )


def _models(engine: EmbeddedEngine) -> dict[str, Any]:
    model = {
        "id": engine.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "filmroll",
        "max_model_len": engine.max_model_len,
    }
    return {"object": "list", "data": [model]}
