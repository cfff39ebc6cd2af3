"""Whether a server at a port of this machine is there yet, and ports at which one may be."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import aiohttp

from filmroll.run.network import LOOPBACK

_EVERYWHERE = {"0.0.0.0": LOOPBACK, "::": "::1"}  # noqa: S104 - who listens at all addresses is asked at one
_POLL = 0.2
_ANSWER = aiohttp.ClientTimeout(total=10)


def free_port(host: str = LOOPBACK, port: int = 0) -> int:
    """A port that nobody listens at now: this one, or an OSError; any for 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as taken:
        return int(taken.getsockname()[1])


def url_of(host: str, port: int) -> str:
    """Where a server that listens there can be asked."""
    asked = _EVERYWHERE.get(host, host)
    return f"http://[{asked}]:{port}" if ":" in asked else f"http://{asked}:{port}"


async def until_healthy(url: str) -> None:
    """Return once the server answers that it is well."""
    async with aiohttp.ClientSession(timeout=_ANSWER) as http:
        while True:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with http.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(_POLL)
