"""Calls between the processes of one run: ZeroMQ sockets, msgpack bodies, typed answers.

A process that does work listens; the orchestrator calls. Calls run side by side, answers come back
in any order, errors keep their class.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import zmq
import zmq.asyncio

from filmroll.durable import disk_full, says_full
from filmroll.errors import FilmrollError, PeerError, every_error
from filmroll.wire.packed import Failure, failure, pack, raised, unpack

T = TypeVar("T")
Answer = TypeVar("Answer")

MAX_MESSAGE_BYTES = 1 << 30
_ERRORS = {kind.code: kind for kind in every_error()}
_log = logging.getLogger(__name__)


class Call(msgspec.Struct, frozen=True):
    """What is asked of a process: the name of one of its handlers, and that handler's message."""

    name: str
    body: msgspec.Raw


Handler = Callable[[Any], Awaitable[Any]]


class Listener:
    """The side that works. `handlers` maps a call's name to its message type and an async function.

    Who calls must know `endpoint` whole: behind the address stands a key, without which a message
    is passed over. A port of this machine is open to everyone on it.
    """

    def __init__(self, handlers: dict[str, tuple[type, Handler]], *, host: str = "127.0.0.1") -> None:
        self._handlers = handlers
        self._socket: Any = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._key = secrets.token_hex(16).encode()
        port = self._socket.bind_to_random_port(f"tcp://{host}")
        self.endpoint = f"tcp://{host}:{port}#{self._key.decode()}"
        self._running: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Answer calls until cancelled."""
        try:
            while True:
                frames = await self._socket.recv_multipart()
                if len(frames) != 4 or not secrets.compare_digest(frames[1], self._key):
                    _log.warning("passed over a message of %d frames without this process's key", len(frames))
                    continue
                sender, _, number, body = frames
                task = asyncio.create_task(self._answer(sender, number, body))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
        finally:
            self._socket.close()

    async def _answer(self, sender: bytes, number: bytes, body: bytes) -> None:
        try:
            result, word = pack(await self._work(unpack(body, Call))), b"ok"
        except FilmrollError as error:
            result, word = pack(failure(error)), b"error"
        except Exception as error:  # noqa: BLE001 - whatever breaks here must reach the caller, not vanish in a task
            _log.exception("call failed")
            known = disk_full(error) if says_full(error) else _unforeseen(error)
            result, word = pack(failure(known)), b"error"
        await self._socket.send_multipart([sender, number, word, result])

    async def _work(self, call: Call) -> Any:
        if call.name not in self._handlers:
            raise PeerError(f"no call is named {call.name[:64]!r}")
        kind, handler = self._handlers[call.name]
        return await handler(unpack(bytes(call.body), kind))


def _unforeseen(error: Exception) -> PeerError:
    """An error that nobody has raised on purpose, often of somebody's environment, and the line that it is from."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{last.filename}, line {last.lineno}, in {last.name}; all of it is in that process's log"
    return PeerError(f"{type(error).__name__}: {error}", private=where)


class Caller:
    """The side that asks. `call` waits for the answer as long as the caller does."""

    def __init__(self, endpoint: str) -> None:
        self._socket: Any = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        address, _, key = endpoint.partition("#")
        self._key = key.encode()
        self._socket.connect(address)
        self._numbers = itertools.count()
        self._waiting: dict[bytes, asyncio.Future[tuple[bytes, bytes]]] = {}
        self._reader = asyncio.create_task(self._read())

    async def call(self, name: str, message: Any, answer: type[Answer]) -> Answer:
        if self._socket.closed:
            raise PeerError("nobody is spoken to any more")
        number = str(next(self._numbers)).encode()
        body = pack(Call(name, msgspec.Raw(pack(message))))
        future: asyncio.Future[tuple[bytes, bytes]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            await self._socket.send_multipart([self._key, number, body])
            word, result = await future
        finally:
            self._waiting.pop(number, None)
        if word != b"ok":
            raise raised(unpack(result, Failure), _ERRORS, PeerError)
        return unpack(result, answer)

    async def _read(self) -> None:
        while True:
            frames = await self._socket.recv_multipart()
            number, word, result = frames if len(frames) == 3 else (b"", b"", b"")
            future = self._waiting.get(number)
            if future is not None and not future.done():
                future.set_result((word, result))

    def close(self) -> None:
        self._reader.cancel()
        self._socket.close()
