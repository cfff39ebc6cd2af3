"""What every route shares: bodies of bounded size, errors as answers, clients that may leave.

Errors carry no paths, no addresses and no tracebacks; those are in the log.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from filmroll.errors import FilmrollError, RequestError

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 8 * 2**20
"""About 600,000 token ids, or 10,000 references."""
MAX_DROPPED_BYTES = 64 * 2**20
NO_ROUTE, NO_METHOD, CLIENT_CLOSED = 404, 405, 499
UNAVAILABLE = 503
RETRY_AFTER_S = 1

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
Result = TypeVar("Result")


def answering(endpoint: Endpoint) -> Endpoint:
    """The same endpoint, whose errors are answers."""

    @functools.wraps(endpoint)
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except FilmrollError as error:
            if error.status >= 500:
                log.warning("%s failed: %s", request.url.path, error)
            return error_answer(error)
        except HTTPException:
            raise
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED)
        except Exception:
            log.exception("%s failed in a way nobody foresaw", request.url.path)
            return error_answer(FilmrollError("the engine failed on this request; its log says why"))

    return answer


async def http_error(request: Request, error: Exception) -> Response:
    """No such route, no such method, too large a body: the status is HTTP's, the form is ours."""
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == NO_ROUTE:
        routes = (f"{_methods(route)} {route.path}" for route in request.app.routes)
        ours = RequestError("there is no such route", remedy=f"There are {', '.join(routes)}")
    elif error.status_code == NO_METHOD:
        return method_error(request, (error.headers or {})["Allow"])
    else:
        ours = RequestError(error.detail)
    return JSONResponse({"error": ours.wire() | {"code": error.status_code}}, error.status_code, error.headers)


def method_error(request: Request, allowed: str) -> Response:
    """The answer where a route is asked by another method than it has."""
    ours = RequestError(f"this route is not asked by {request.method[:16]}", remedy=f"Use {allowed}")
    return JSONResponse({"error": ours.wire() | {"code": NO_METHOD}}, NO_METHOD, {"Allow": allowed})


def _methods(route: Any) -> str:
    return "/".join(sorted(route.methods - {"HEAD"}))


def error_answer(error: FilmrollError) -> Response:
    """The error's public form; what may pass by itself says when to come back."""
    headers = {"retry-after": str(RETRY_AFTER_S)} if error.status == UNAVAILABLE else None
    return JSONResponse({"error": error.wire()}, error.status, headers)


async def read_body(request: Request, most: int = MAX_BODY_BYTES) -> bytes:
    """The body; one of more than `most` bytes is read on and dropped, for a client that still sends sees no answer."""
    parts = bytearray()
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= most:
            parts += part
        elif size > MAX_DROPPED_BYTES:
            break
    if size > most:
        raise HTTPException(413, f"the body is larger than {most} bytes")
    return bytes(parts)


class _Update(msgspec.Struct):
    version: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


_update = msgspec.json.Decoder(_Update)


async def read_version(request: Request) -> int:
    """Which version of the weights an update asks for."""
    try:
        return _update.decode(await read_body(request)).version
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RequestError(f"the update cannot be read: {error}", field="version") from None


async def while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """Await `work`; if the client goes away before, cancel it and raise ClientDisconnect."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
