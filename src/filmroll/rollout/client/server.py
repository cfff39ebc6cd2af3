"""One server of a model: what it said of itself, what it is known to have, and HTTP with it."""

from __future__ import annotations

import email.utils
import hashlib
import math
import time
from typing import Annotated

import aiohttp
import msgspec

from filmroll.errors import (
    ConfigError,
    EngineAnswerError,
    EngineRefusedError,
    EngineUnavailableError,
    FilmrollError,
    FingerprintError,
    UnknownReferenceError,
)
from filmroll.families.base import Family
from filmroll.rollout.client.tries import Failed
from filmroll.store.recent import Recent
from filmroll.wire import capabilities
from filmroll.wire.capabilities import Capabilities, Way

GENERATE = "/inference/v1/generate"
UPDATE_WEIGHTS = "/inference/v1/update_weights"
WEIGHT_INFO = "/inference/v1/weight_info"
SESSION = "x-session-id"
"""A vLLM of several replicas, or a router before it, keeps a session's requests together by it."""

REFERENCES = 65_536
"""How many a server is remembered to have seen; others are sent whole."""
CONNECTIONS = 1024
CONNECT_S = 10.0
LOOK_S = 30.0
"""How long a server may take to say what it is; a busy one is slow, but answers."""

_JSON = {"content-type": "application/json"}
_NO_SUCH_ROUTE = (404, 405, 501)
_UNAVAILABLE = 503
_GATEWAY = (502, 504)


class _Version(msgspec.Struct):
    version: Annotated[int, msgspec.Meta(ge=0)]


_read_version = msgspec.json.Decoder(_Version)


class Server:
    """Asks one server, and remembers what it was told. Made inside an event loop."""

    def __init__(self, url: str, way: Way | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"the engine's url is {url!r}", remedy="It begins with http:// or https://")
        self.url = url.rstrip("/")
        self.capabilities: Capabilities | None = None
        self.version: int | None = None
        """The weights it is known to have; None where nobody published any."""
        self.seen: Recent[None] = Recent(REFERENCES)
        """The sha256 of references that it has answered for: it may know them by that from then on."""
        self._wanted_way = way
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        )

    @property
    def way(self) -> Way:
        """How images get into its requests: as it was asked for, else the best that it says it takes."""
        if self._wanted_way is not None:
            return self._wanted_way
        known = self.capabilities
        return "references" if known is not None and "references" in known.ways else "content_parts"

    @property
    def takes_hashes(self) -> bool:
        return self.capabilities is not None and self.capabilities.hashes and self.way == "references"

    def forget(self) -> None:
        """Assume nothing about it any longer."""
        self.version = None
        self.seen = Recent(REFERENCES)

    def rank(self, session: str) -> bytes:
        """Its place in a session's order of servers: the smallest is first. Other servers do not change it."""
        return hashlib.blake2b(f"{session}\0{self.url}".encode(), digest_size=16).digest()

    def check(self, family: Family) -> None:
        """Refuse prompts that were made for another model than it serves, as far as it says what it serves."""
        known = self.capabilities
        if known is None:
            return
        pairs = [("family", family.name, [known.family]), ("fingerprint", family.fingerprint, [known.fingerprint])]
        for what, ours, theirs in [*pairs, ("recipe", family.recipe, known.recipes)]:
            if ours not in theirs:
                raise FingerprintError(
                    f"the prompt is made for the {what} {ours}, the engine ({known.engine}, model {known.model!r}) "
                    f"serves {' or '.join(theirs)}",
                    remedy="Renderer and engine need the same checkpoint, image bounds included",
                )
        if self.way not in known.ways:
            raise ConfigError(
                f"images are to be sent as {self.way}, the engine takes {' or '.join(known.ways)}",
                remedy="Leave the way to be found out",
            )

    async def look(self) -> None:
        """Ask what it is. Failed if it does not answer."""
        content = await self._request("GET", capabilities.ROUTE, seconds=LOOK_S, optional=True)
        self.capabilities = None if content is None else capabilities.read_capabilities(content)

    async def generate(self, body: bytes, session: str) -> bytes:
        # The name itself may hold what no header can.
        named = {SESSION: hashlib.blake2b(session.encode(), digest_size=16).hexdigest()}
        return await self._request("POST", GENERATE, body, named) or b""

    async def update_weights(self, version: int) -> None:
        await self._request("POST", UPDATE_WEIGHTS, msgspec.json.encode({"version": version}))
        self.version = version

    async def weights(self) -> int:
        """The version that it says it serves."""
        content = await self._request("GET", WEIGHT_INFO, seconds=LOOK_S)
        try:
            return _read_version.decode(content or b"").version
        except (msgspec.DecodeError, UnicodeError) as error:
            raise EngineAnswerError(f"the engine's version cannot be read: {error}") from None

    async def close(self) -> None:
        await self._http.close()

    async def _request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        seconds: float | None = None,
        optional: bool = False,
    ) -> bytes | None:
        """The answer's body; None for an `optional` route that is not there.

        Failed where another try may help, else the error that the server answered with.
        """
        limits = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_S)
        try:
            async with self._http.request(
                method,
                self.url + path,
                data=body,
                headers=_JSON | (headers or {}),
                allow_redirects=False,
                timeout=limits,
            ) as response:
                status, content = response.status, await response.read()
                after = _seconds(response.headers.get("retry-after"))
        except (aiohttp.ClientError, TimeoutError) as error:
            connected = not isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
            raise Failed(self._unreachable(error), reached=connected, gone=True) from None
        if status == 200:
            return content
        if optional and status in _NO_SUCH_ROUTE:
            return None
        refusal, own = _refusal(status, content)
        if status < 500:
            raise refusal
        # What stands before a server that is not there says 502 and 504; an engine's own errors are structured.
        absent = status == _UNAVAILABLE or (status in _GATEWAY and not own)
        raise Failed(EngineUnavailableError(f"the engine failed: {refusal}"), reached=not absent, after=after)

    def _unreachable(self, error: Exception) -> EngineUnavailableError:
        return EngineUnavailableError(
            "the engine cannot be reached",
            remedy="Is it running?",
            private=f"{self.url}: {type(error).__name__}: {error}",
        )


def _seconds(text: str | None) -> float:
    """A Retry-After: seconds, or a date."""
    if text is None:
        return 0.0
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _refusal(status: int, content: bytes) -> tuple[FilmrollError, bool]:
    """What a server says is wrong, and whether it said so in the engines' own form."""
    try:
        error = msgspec.json.decode(content)["error"]
        kind = UnknownReferenceError if error.get("type") == UnknownReferenceError.code else EngineRefusedError
        refused = kind(
            f"the engine refused the request ({status} {error.get('type')}): {error.get('message')}",
            field=error.get("param"),
            index=error.get("index"),
        )
    except (msgspec.DecodeError, UnicodeError, RecursionError, KeyError, TypeError, AttributeError):
        return EngineRefusedError(f"the engine answered {status} and no structured error"), False
    return refused, True
