"""Whether a server at a port of this machine is there yet, and ports at which one may be."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import aiohttp

LOOPBACK = "127.0.0.1"
_POLL = 0.2
_ANSWER = aiohttp.ClientTimeout(total=10)


def free_port(host: str = LOOPBACK) -> int:
    """A port that nobody listens at now."""
    with socket.create_server((host, 0)) as taken:
        return int(taken.getsockname()[1])


async def until_healthy(url: str) -> None:
    """Return once the server answers that it is well."""
    async with aiohttp.ClientSession(timeout=_ANSWER) as http:
        while True:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with http.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(_POLL)
