"""What a test does to a server from inside: its engine takes the next versions, or a part of them, and then fails."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

PATH = "/break-the-next-updates"
WORKER = "/break-a-workers-next-load"


async def breaking(request: Any, call_next: Any) -> Any:
    """A middleware for `--middleware`."""
    if request.url.path not in (PATH, WORKER):
        return await call_next(request)
    from starlette.responses import JSONResponse

    client, told = request.app.state.engine_client, await request.json()
    if request.url.path == WORKER:
        return JSONResponse({"broken": await client.collective_rpc("break_the_next_load", args=(told["rank"],))})
    times = told["times"]
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


class Breakable:
    """What every worker can do beside its own, for `--worker-extension-cls`."""

    rank: int
    model_runner: Any

    def break_the_next_load(self, rank: int) -> bool:
        """The worker of this rank takes half of the next weights that it is given, and then fails."""
        if self.rank != rank:
            return False
        model = self.model_runner.model
        whole = model.load_weights

        def halfway(weights: Iterable[tuple[str, Any]]) -> None:
            del model.load_weights
            some = list(weights)
            whole(some[: len(some) // 2])
            raise RuntimeError("this worker ran out of memory")

        model.load_weights = halfway
        return True
