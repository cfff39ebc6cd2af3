"""What a test does to a server from inside: the next version that its engine takes is taken, and then an error."""

from __future__ import annotations

from typing import Any

PATH = "/break-the-next-update"


async def breaking(request: Any, call_next: Any) -> Any:
    """A middleware for `--middleware`."""
    if request.url.path != PATH:
        return await call_next(request)
    from starlette.responses import JSONResponse

    client = request.app.state.engine_client

    async def update_weights(**wanted: Any) -> None:
        del client.update_weights
        await client.update_weights(**wanted)
        raise RuntimeError("a worker ran out of memory")

    client.update_weights = update_weights
    return JSONResponse({})
