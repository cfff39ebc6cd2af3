"""What a test does to a server from inside: its engine forgets the images that the API server believes it has.

The two caches drift apart like that by themselves, but not when a test wants it.
"""

from __future__ import annotations

from typing import Any

PATH = "/sabotage"


async def sabotage(request: Any, call_next: Any) -> Any:
    """A middleware for `--middleware`."""
    if request.url.path != PATH:
        return await call_next(request)
    from starlette.responses import JSONResponse

    await request.app.state.engine_client.engine_core.reset_mm_cache_async()
    return JSONResponse({})
