"""A stream over ZeroMQ: the receiver listens, the sender keeps in memory what is not acknowledged.

The sender says hello again and again, each time with how much it has sent; the receiver answers with
what it has. If that is less, something was lost on the way, with a connection or with a receiver,
and is sent again. Whatever comes out of order is passed over. That is all there is to recovery.

A sender's memory ends with its process: the next one is told to go on with what is not acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import zmq
import zmq.asyncio

from filmroll.errors import FilmrollError, MessageError, StreamTakenError, TransportError, every_error
from filmroll.wire.packed import Failure, failure, pack, raised, unpack
from filmroll.wire.transport.message import VERSION, Codec, Parts, check_version, read_head
from filmroll.wire.transport.stream import (
    Held,
    Numbered,
    Receiver,
    Sender,
    Window,
    check_acknowledged,
    check_size,
    gone_back,
    weigh,
)

T = TypeVar("T")

PULSE = 0.25
"""Seconds between two hellos."""

_NOT_YET = -1
_HEAD_BYTES = 1 << 16
_PAST_SESSIONS = 1000
_LETTING_GO = 1.0
"""Seconds that a socket which was closed may still hold its port, or what was sent through it."""
_MOMENT = 0.01
_ERRORS = {kind.code: kind for kind in every_error()}
_log = logging.getLogger(__name__)


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """A sender, its window, and what it would send next; `_NOT_YET` from one that has to be told where to begin."""

    version: int
    messages: int
    nbytes: int
    sent: int


class State(msgspec.Struct, frozen=True, array_like=True):
    """A receiver's answer: what is done with, and where to begin anew; `_NOT_YET` if nothing is missing."""

    acknowledged: int
    wanted: int = _NOT_YET


class SocketSender(Sender[T]):
    """Made by `open`, which waits for the receiver."""

    def __init__(self, place: str, codec: Codec[T], window: Window) -> None:
        super().__init__(codec, window)
        self._session = secrets.token_bytes(16)
        self._outbox: dict[int, Parts] = {}
        self._sent = _NOT_YET
        self._failure: FilmrollError | None = None
        self._news = asyncio.Condition()
        self._lent: list[zmq.MessageTracker] = []
        self._call_up(place)

    def _call_up(self, place: str) -> None:
        address, _, key = place.partition("#")
        self._key = key.encode()
        self._socket: Any = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        # Unlimited, because the window limits it; and nothing waits in the socket for a receiver that is gone.
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _HEAD_BYTES)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self._socket.close()
            raise TransportError("the stream's address cannot be used", private=f"{address}: {error}") from error
        self._tasks = [asyncio.create_task(work) for work in (self._say_hello(), self._listen(), self._transmit())]

    @classmethod
    async def open(cls, place: str, codec: Codec[T], window: Window) -> SocketSender[T]:
        return await cls(place, codec, window).begun()

    async def send(self, message: T) -> int:
        async with self._turn:
            parts = self._codec.encode(self.next, message)
            nbytes = weigh(parts, self._held.window)
            await self._until(lambda: self._held.has_room(nbytes))
            number = self._held.add(nbytes)
            if number >= self._held.acknowledged:
                self._outbox[number] = parts
            self.sent_bytes += nbytes
        await self._tell()
        return number

    async def settle(self) -> None:
        await self._until(lambda: len(self._held) == 0)

    async def withdraw(self, number: int) -> None:
        if number < self.next:
            raise TransportError(f"message {number} is on its way and cannot be withdrawn")

    async def move(self, place: str) -> None:
        await self._hang_up()
        self._call_up(place)

    async def close(self) -> None:
        await self._hang_up()
        # ZeroMQ reads the arrays themselves, in a thread of its own: freed under it, they end the process.
        for _ in range(round(_LETTING_GO / _MOMENT)):
            if all(one.done for one in self._lent):
                break
            await asyncio.sleep(_MOMENT)

    async def _hang_up(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.close()

    async def _begin(self) -> None:
        await self._until(lambda: self._sent != _NOT_YET)

    async def _until(self, there: Callable[[], bool]) -> None:
        async with self._news:
            await self._news.wait_for(lambda: self._failure or there())
        if self._failure is not None:
            raise self._failure.at()

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _transmit(self) -> None:
        while True:
            await self._until(lambda: _NOT_YET < self._sent < self.next)
            number = self._sent
            if number in self._outbox:
                frames = [self._key, b"message", self._session, *self._outbox[number]]
                lent = await self._socket.send_multipart(frames, copy=False, track=True)
                self._lent = [one for one in [*self._lent, lent] if not one.done]
            # An answer that came meanwhile may have set it back.
            if self._sent == number:
                self._sent += 1

    async def _say_hello(self) -> None:
        window = self._held.window
        while self._failure is None:
            hello = Hello(VERSION, window.messages, window.nbytes, self._sent)
            await self._socket.send_multipart([self._key, b"hello", self._session, pack(hello)])
            await asyncio.sleep(PULSE)

    async def _listen(self) -> None:
        while self._failure is None:
            frames = await self._socket.recv_multipart()
            try:
                if frames[0] == b"refused":
                    self._failure = raised(unpack(frames[-1], Failure), _ERRORS, TransportError)
                else:
                    self._learn(unpack(frames[-1], State))
            except FilmrollError as error:
                self._failure = error
            await self._tell()

    def _learn(self, state: State) -> None:
        if self._sent == _NOT_YET:
            if state.wanted != _NOT_YET:
                self._held, self._sent = Held(self._held.window, state.wanted), state.wanted
            return
        if state.acknowledged < self._held.acknowledged:
            raise gone_back(state.acknowledged, self._held.acknowledged)
        self._held.acknowledge(state.acknowledged)
        for number in [number for number in self._outbox if number < state.acknowledged]:
            del self._outbox[number]
        if _NOT_YET < state.wanted < self._sent:
            self._sent = state.wanted


class SocketReceiver(Receiver[T]):
    """Made by `open`. Listens at `tcp://host:port#key`, or at `tcp://host` with a port and a key of its own."""

    def __init__(self, place: str, codec: Codec[T], window: Window, begin: int) -> None:
        self.place = place
        self._codec = codec
        self._held = Held(window, begin)
        self._handed_out = begin
        self._ready: asyncio.Queue[Numbered[T] | FilmrollError] = asyncio.Queue()
        self._sender: bytes | None = None
        self._session: bytes | None = None
        self._past: deque[bytes] = deque(maxlen=_PAST_SESSIONS)
        self._reader: asyncio.Task[None] | None = None
        self._socket: Any = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.RCVHWM, window.messages + 64)
        self._socket.setsockopt(zmq.MAXMSGSIZE, window.largest)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._key = b""

    @classmethod
    async def open(cls, place: str, codec: Codec[T], window: Window, begin: int) -> SocketReceiver[T]:
        return await cls(place, codec, window, begin).begun()

    async def _begin(self) -> None:
        await self._bind()
        self._reader = asyncio.create_task(self._read())

    async def _bind(self) -> None:
        address, _, key = self.place.partition("#")
        latest = time.monotonic() + _LETTING_GO
        while True:
            try:
                if key:
                    self._socket.bind(address)
                else:
                    port = self._socket.bind_to_random_port(address)
                    self.place = f"{address}:{port}#{secrets.token_hex(16)}"
            except zmq.ZMQError as error:
                if error.errno != zmq.EADDRINUSE:
                    raise TransportError(
                        "the stream's address cannot be used", private=f"{address}: {error}"
                    ) from error
                if time.monotonic() > latest:
                    raise StreamTakenError("another process receives this stream", remedy="End it first") from error
                await asyncio.sleep(5 * _MOMENT)
            else:
                self._key = self.place.partition("#")[2].encode()
                return

    async def receive(self) -> Numbered[T]:
        found = await self._ready.get()
        if isinstance(found, FilmrollError):
            raise found
        self._handed_out = found.number + 1
        return found

    async def acknowledge(self, number: int) -> None:
        check_acknowledged(number, self._held.acknowledged, self._handed_out)
        self._held.acknowledge(number)
        if self._sender is not None:
            await self._answer(self._sender, b"state", State(number))

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._socket.close()

    async def _read(self) -> None:
        while True:
            frames = await self._socket.recv_multipart(copy=False)
            if len(frames) < 5 or not secrets.compare_digest(frames[1].bytes, self._key):
                _log.warning("passed over a message of %d frames without this stream's key", len(frames))
                continue
            sender, _, word, session = (frame.bytes for frame in frames[:4])
            try:
                await self._hear(sender, word, session, [frame.buffer.toreadonly() for frame in frames[4:]])
            except FilmrollError as error:
                await self._answer(sender, b"refused", failure(error))
                if isinstance(error, MessageError):
                    self._ready.put_nowait(error)

    async def _hear(self, sender: bytes, word: bytes, session: bytes, parts: Parts) -> None:
        if session != self._session and session in self._past:
            raise StreamTakenError("another sender has taken over this stream", remedy="End one of the two")
        if word == b"hello":
            await self._greet(sender, session, unpack(parts[0], Hello))
        elif session == self._session:
            self._take(parts)

    async def _greet(self, sender: bytes, session: bytes, hello: Hello) -> None:
        check_version(hello.version)
        window = self._held.window
        if hello.messages > window.messages or hello.nbytes > window.nbytes:
            raise MessageError("the sender's window is larger than the receiver's", remedy="Configure both ends alike")
        if session != self._session:
            if self._session is not None:
                self._past.append(self._session)
            self._session = session
        self._sender = sender
        # A new sender begins with what is not acknowledged, though this receiver may have it from the one before:
        # should this receiver end, that is what the next one will want.
        known, wanted = self._held.acknowledged, _NOT_YET
        if hello.sent == _NOT_YET:
            wanted = known
        elif self._held.next < hello.sent:
            # What was sent while the hello was on its way is not spoken of: it is not missing.
            wanted = self._held.next
        await self._answer(sender, b"state", State(known, wanted))

    def _take(self, parts: Parts) -> None:
        if read_head(parts[0]).number != self._held.next:
            return
        nbytes = sum(part.nbytes for part in parts)
        check_size(nbytes, self._held.window)
        if not self._held.has_room(nbytes):
            raise MessageError(
                f"message {self._held.next} is more than the window of this receiver holds",
                remedy="Configure both ends alike",
            )
        number, message = self._codec.decode(parts)
        self._held.add(nbytes)
        self._ready.put_nowait(Numbered(number, message))

    async def _answer(self, sender: bytes, word: bytes, body: Any) -> None:
        await self._socket.send_multipart([sender, word, pack(body)])
