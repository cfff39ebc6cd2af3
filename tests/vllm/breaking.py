"""What a test does to a server from inside: the next versions that its engine takes are taken, and then an error."""

from __future__ import annotations

from typing import Any

PATH = "/break-the-next-updates"


async def breaking(request: Any, call_next: Any) -> Any:
    """A middleware for `--middleware`."""
    if request.url.path != PATH:
        return await call_next(request)
    from starlette.responses import JSONResponse

    client, times = request.app.state.engine_client, (await request.json())["times"]
    whole = client.update_weights

    async def update_weights(**wanted: Any) -> None:
        nonlocal times
        times -= 1
        if not times:
            del client.update_weights
        await whole(**wanted)
        raise RuntimeError("a worker ran out of memory")

    client.update_weights = update_weights
    return JSONResponse({})
