"""A stream of messages from one process to another: numbered, in order, each taken in once.

What both transports promise:

- Messages have numbers, from 0 on without a gap, and come in the order of their numbers.
- A message is kept until it is acknowledged. The receiver acknowledges when what it made of the
  messages is safe itself, such as in a checkpoint, and after a restart it begins where that left off.
- A message that was acknowledged never comes again. One that was not comes again to a receiver
  that was restarted, and never twice to the same one.
- After a restart, `Sender.next` is the first message that is not safe in the stream: the sender
  goes on there.
- Who sends waits while as much is under way as the window allows.
- Each end is held by one process.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Self, TypeVar

from filmroll.errors import MessageError, TransportError
from filmroll.wire.transport.message import Codec, Parts

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Window:
    """How much may be sent and not yet acknowledged, in messages and in bytes."""

    messages: int = 64
    nbytes: int = 1 << 30

    @property
    def largest(self) -> int:
        """Bytes of the largest message: half of the window, so that one always fits in before it is crowded."""
        return self.nbytes // 2


class Numbered(NamedTuple, Generic[T]):
    """A message and its number in the stream."""

    number: int
    message: T


class End(ABC):
    """Either end of a stream."""

    async def begun(self) -> Self:
        """This end, ready; whatever keeps it from that, nothing of it stays open."""
        try:
            await self._begin()
        except BaseException:
            await self.close()
            raise
        return self

    @abstractmethod
    async def _begin(self) -> None:
        """Find out where the stream stands."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of the stream, also where it was never begun."""


class Sender(End, Generic[T]):
    """The end where messages go in."""

    def __init__(self, codec: Codec[T], window: Window) -> None:
        self.sent_bytes = 0
        """What was put into the stream by this sender; what a transport sends twice is counted once."""
        self._codec = codec
        self._held = Held(window, 0)
        self._turn = asyncio.Lock()

    @property
    def next(self) -> int:
        """The number that the next message gets."""
        return self._held.next

    @property
    def crowded(self) -> bool:
        """Whether half of the window is taken: time for the receiver to acknowledge what it has."""
        return self._held.crowded

    @abstractmethod
    async def send(self, message: T) -> int:
        """Put a message into the stream as soon as the window has room, and return its number."""

    @abstractmethod
    async def settle(self) -> None:
        """Wait until all that was sent is acknowledged."""

    @abstractmethod
    async def move(self, place: str) -> None:
        """Go on with a receiver that was started again and listens there: it gets what is not acknowledged."""

    @abstractmethod
    async def withdraw(self, number: int) -> None:
        """Take back what lies in the stream from that number on, before any receiver asks for it."""


class Receiver(End, Generic[T]):
    """The end where messages come out."""

    place: str
    """What a sender is told in order to send here."""

    @abstractmethod
    async def receive(self) -> Numbered[T]:
        """The next message, as soon as there is one."""

    @abstractmethod
    async def acknowledge(self, number: int) -> None:
        """All messages before that number are done with and need not come again."""


class Held:
    """Which messages are under way, from the first that is not acknowledged to the next that will come."""

    def __init__(self, window: Window, first: int) -> None:
        self.window = window
        self.acknowledged = first
        self.next = first
        self.nbytes = 0
        self._sizes: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._sizes)

    def has_room(self, nbytes: int) -> bool:
        return len(self._sizes) < self.window.messages and self.nbytes + nbytes <= self.window.nbytes

    @property
    def crowded(self) -> bool:
        return 2 * len(self._sizes) >= self.window.messages or 2 * self.nbytes >= self.window.nbytes

    def add(self, nbytes: int) -> int:
        """Count the next message in. One that was acknowledged from another sender's hand only gets its number."""
        number, self.next = self.next, self.next + 1
        if number >= self.acknowledged:
            self._sizes.append(nbytes)
            self.nbytes += nbytes
        return number

    def acknowledge(self, number: int) -> None:
        """Let go of all before that number, which may be one that is still to come."""
        for _ in range(max(0, min(number, self.next) - self.acknowledged)):
            self.nbytes -= self._sizes.popleft()
        self.acknowledged = max(self.acknowledged, number)

    def withdraw(self, number: int) -> None:
        while self.next > number and self._sizes:
            self.nbytes -= self._sizes.pop()
            self.next -= 1


def weigh(parts: Parts, window: Window) -> int:
    """The bytes of a message's parts, if they are not too many."""
    nbytes = sum(part.nbytes for part in parts)
    check_size(nbytes, window)
    return nbytes


def check_size(nbytes: int, window: Window) -> None:
    if nbytes > window.largest:
        raise MessageError(
            f"the message has {nbytes} bytes, at most {window.largest} travel",
            remedy="Raise transport.window_mb, of which a message may take half, or send less at once",
        )


def check_acknowledged(number: int, done: int, handed_out: int) -> None:
    if not done <= number <= handed_out:
        raise TransportError(
            f"messages before {number} cannot be acknowledged: those before {done} have been, {handed_out} comes next"
        )


def gone_back(wanted: int, acknowledged: int) -> TransportError:
    """A receiver that begins again before what it has acknowledged wants messages that nobody has any more."""
    return TransportError(
        f"the receiver wants message {wanted} again, and had acknowledged all before {acknowledged}",
        remedy="Start the sender again: it will go on with that message",
    )


def missing(number: int, found: Sequence[int]) -> TransportError:
    return TransportError(
        f"message {number} is missing and message {found[0]} is there", remedy="Somebody has removed a file"
    )
