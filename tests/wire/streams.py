"""What the tests of streams share: a message, places for both transports, and both ends opened."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np

from filmroll.wire.arrays import Floats, Ints
from filmroll.wire.transport import Codec, Window, open_receiver, open_sender

TRANSPORTS = ["zmq", "files"]
WINDOW = Window(messages=8, nbytes=1 << 20)


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str
    values: Ints
    more: Floats


CODEC = Codec(Note)


def note(number: int, length: int | None = None) -> Note:
    """The message that has this number; the same in every process."""
    length = random.Random(number).randrange(2000) if length is None else length
    return Note(f"note {number}", np.arange(length, dtype=np.int32) + number, np.full(length, number, np.float32))


def print_of(message: Note, before: str = "") -> str:
    """A hash of a message and of all that came before it."""
    parts = (before.encode(), message.text.encode(), message.values.tobytes(), message.more.tobytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def new_place(transport: str, folder: Path) -> str:
    if transport == "files":
        return str(folder / "stream")
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"tcp://127.0.0.1:{free.getsockname()[1]}#secret"


@asynccontextmanager
async def receiving(place: str, *, begin: int = 0, window: Window = WINDOW, codec: Codec = CODEC):
    receiver = await open_receiver(place, codec, window, begin=begin)
    try:
        yield receiver
    finally:
        await receiver.close()


@asynccontextmanager
async def sending(place: str, *, window: Window = WINDOW, codec: Codec = CODEC):
    sender = await open_sender(place, codec, window)
    try:
        yield sender
    finally:
        await sender.close()


@asynccontextmanager
async def stream(place: str, **chosen):
    """Both ends: sender, receiver."""
    async with receiving(place, **chosen) as receiver:
        chosen.pop("begin", None)
        async with sending(place, **chosen) as sender:
            yield sender, receiver


def within(conversation, seconds: float = 30):
    """Run a coroutine to its end, which must come soon."""

    async def bounded():
        async with asyncio.timeout(seconds):
            return await conversation

    return asyncio.run(bounded())
