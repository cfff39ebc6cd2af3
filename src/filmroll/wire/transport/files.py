"""A stream in a folder: each message is a file that is either whole and on disk or not there.

    <12 digits>.message     what is not acknowledged
    cursor.json             before which number all is acknowledged; the receiver writes it
    sender.lock receiver.lock

It outlives both ends. A folder that both see is all it needs.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from filmroll.durable import disk_full, says_full, sync, write_whole
from filmroll.errors import FilmrollError, MessageError, StreamTakenError, TransportError
from filmroll.wire.transport.message import Codec, Parts
from filmroll.wire.transport.stream import (
    Held,
    Numbered,
    Receiver,
    Sender,
    Window,
    check_acknowledged,
    check_size,
    gone_back,
    missing,
    weigh,
)

T = TypeVar("T")
Result = TypeVar("Result")

PAUSE = 0.01
"""Seconds between two looks into the folder."""

_NAME = re.compile(r"(\d{12})\.message")
_CURSOR = "cursor.json"
_MAX_CURSOR_BYTES = 4096


class Cursor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Annotated[str, msgspec.Meta(pattern=r"\Afilmroll-stream-1\Z")]
    acknowledged: Annotated[int, msgspec.Meta(ge=0)]


_cursors = msgspec.json.Decoder(Cursor)


class Folder:
    """One end's hold on the folder, and the one thread in which it works there.

    In one thread, whatever is given up half-way still ends before the next thing begins.
    """

    def __init__(self, path: Path, end: str) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / f"{end}.lock").open("ab")
        except OSError as error:
            raise self.failed(error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise StreamTakenError(
                f"another process is the {end} of this stream", remedy="End it first", private=str(path)
            ) from error
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"stream-{end}")

    async def do(self, work: Callable[..., Result], *arguments: Any) -> Result:
        def guarded() -> Result:
            try:
                return work(*arguments)
            except OSError as error:
                raise self.failed(error) from error

        return await asyncio.get_running_loop().run_in_executor(self._thread, guarded)

    async def wait(self, work: Callable[..., Result | None], *arguments: Any) -> Result:
        """What the work gives as soon as it gives anything: the other end is another process."""
        while (result := await self.do(work, *arguments)) is None:  # noqa: ASYNC110 - it sets no event
            await asyncio.sleep(PAUSE)
        return result

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.shutdown)
        self._lock.close()

    def failed(self, error: OSError) -> FilmrollError:
        if says_full(error):
            return disk_full(error, "the stream of samples", self.path)
        return TransportError(
            f"the stream's folder cannot be used: {error.strerror}",
            remedy="What was acknowledged and what was sent is safe; mend the disk and go on",
            private=str(error.filename or self.path),
        )

    def numbers(self) -> list[int]:
        """The messages that are there, in order."""
        found = (_NAME.fullmatch(file.name) for file in self.path.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def message(self, number: int) -> Path:
        return self.path / f"{number:012d}.message"

    def acknowledged(self) -> int:
        try:
            with (self.path / _CURSOR).open("rb") as file:
                return _cursors.decode(file.read(_MAX_CURSOR_BYTES)).acknowledged
        except FileNotFoundError:
            return 0
        except msgspec.DecodeError as error:
            raise TransportError(f"the stream's {_CURSOR} cannot be read: {error}", private=str(self.path)) from None

    def acknowledge(self, number: int) -> None:
        """Say so first and remove afterwards: what is left between the two is removed by whoever opens next."""
        note = msgspec.json.encode(Cursor("filmroll-stream-1", number))
        write_whole(self.path / _CURSOR, [memoryview(note)])
        self.remove(one for one in self.numbers() if one < number)

    def remove(self, numbers: Any) -> None:
        for number in numbers:
            self.message(number).unlink(missing_ok=True)
        sync(self.path)


class FolderSender(Sender[T]):
    """Made by `open`."""

    def __init__(self, folder: Folder, codec: Codec[T], window: Window) -> None:
        super().__init__(codec, window)
        self._folder = folder

    @classmethod
    async def open(cls, place: str, codec: Codec[T], window: Window) -> FolderSender[T]:
        return await cls(await asyncio.to_thread(Folder, Path(place), "sender"), codec, window).begun()

    async def send(self, message: T) -> int:
        async with self._turn:
            parts = await self._folder.do(self._encode, message)
            return await self._folder.wait(self._append, parts)

    async def settle(self) -> None:
        await self._folder.wait(self._settled)

    async def move(self, place: str) -> None:
        """A folder stays where it is: whoever receives there anew finds what is not acknowledged."""
        if Path(place) != self._folder.path:
            raise TransportError("a stream through a folder cannot go on in another one", private=place)

    async def withdraw(self, number: int) -> None:
        def work() -> None:
            # The last one first: what a crash leaves has no gap.
            self._folder.remove(one for one in reversed(self._folder.numbers()) if one >= number)
            self._held.withdraw(number)

        await self._folder.do(work)

    async def close(self) -> None:
        await self._folder.close()

    async def _begin(self) -> None:
        await self._folder.do(self._count)

    def _count(self) -> None:
        """Find out what an earlier sender has left."""
        self._held = Held(self._held.window, self._folder.acknowledged())
        for number in self._folder.numbers():
            if number > self._held.next:
                raise missing(self._held.next, [number])
            if number == self._held.next:
                self._held.add(self._folder.message(number).stat().st_size)

    def _settled(self) -> bool | None:
        self._look()
        return None if len(self._held) else True

    def _look(self) -> None:
        """Let go of what the receiver has acknowledged by now."""
        acknowledged = self._folder.acknowledged()
        if acknowledged < self._held.acknowledged:
            raise gone_back(acknowledged, self._held.acknowledged)
        self._held.acknowledge(acknowledged)

    def _encode(self, message: T) -> Parts:
        return self._codec.encode(self._held.next, message)

    def _append(self, parts: Parts) -> int | None:
        """The message's number once it is on disk; None while there is no room."""
        nbytes = weigh(parts, self._held.window)
        self._look()
        if not self._held.has_room(nbytes):
            return None
        if self._held.next >= self._held.acknowledged:
            write_whole(self._folder.message(self._held.next), parts)
        self.sent_bytes += nbytes
        return self._held.add(nbytes)


class FolderReceiver(Receiver[T]):
    """Made by `open`."""

    def __init__(self, folder: Folder, codec: Codec[T], window: Window, begin: int) -> None:
        self.place = str(folder.path)
        self._folder = folder
        self._codec = codec
        self._window = window
        self._acknowledged = self._next = begin

    @classmethod
    async def open(cls, place: str, codec: Codec[T], window: Window, begin: int) -> FolderReceiver[T]:
        return await cls(await asyncio.to_thread(Folder, Path(place), "receiver"), codec, window, begin).begun()

    async def receive(self) -> Numbered[T]:
        found = await self._folder.wait(self._read, self._next)
        self._next = found.number + 1
        return found

    async def acknowledge(self, number: int) -> None:
        check_acknowledged(number, self._acknowledged, self._next)
        await self._folder.do(self._folder.acknowledge, number)
        self._acknowledged = number

    async def close(self) -> None:
        await self._folder.close()

    async def _begin(self) -> None:
        await self._folder.do(self._set_back)

    def _set_back(self) -> None:
        """Whoever begins before what was acknowledged has to be sent all of it again, and all that followed."""
        if self._next < self._folder.acknowledged():
            self._folder.remove(reversed(self._folder.numbers()))
        self._folder.acknowledge(self._next)

    def _read(self, number: int) -> Numbered[T] | None:
        try:
            data = self._bytes(self._folder.message(number))
        except FileNotFoundError:
            later = [one for one in self._folder.numbers() if one > number]
            # It may have come between the two looks.
            if later and not self._folder.message(number).exists():
                raise missing(number, later) from None
            return None
        said, message = self._codec.decode(self._codec.split(memoryview(data)))
        if said != number:
            raise MessageError(f"the file of message {number} holds message {said}")
        return Numbered(number, message)

    def _bytes(self, path: Path) -> bytes:
        with path.open("rb") as file:
            nbytes = os.fstat(file.fileno()).st_size
            check_size(nbytes, self._window)
            return file.read(nbytes)
