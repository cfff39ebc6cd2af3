"""Streams of messages between processes: training samples on their way to a trainer.

`stream.py` says what every stream promises; `sockets.py` keeps it over ZeroMQ, `files.py` in a folder.
What a message looks like is in `message.py` and `tensors.py`.
"""

from __future__ import annotations

from typing import TypeVar

from filmroll.wire.transport.files import FolderReceiver, FolderSender
from filmroll.wire.transport.message import Codec
from filmroll.wire.transport.sockets import SocketReceiver, SocketSender
from filmroll.wire.transport.stream import Numbered, Receiver, Sender, Window

__all__ = ["Codec", "Numbered", "Receiver", "Sender", "Window", "open_receiver", "open_sender"]

T = TypeVar("T")


async def open_receiver(place: str, codec: Codec[T], window: Window, *, begin: int = 0) -> Receiver[T]:
    """The receiving end at a place, `tcp://host` or a folder; `begin` is the first message that is wanted."""
    if place.startswith("tcp://"):
        return await SocketReceiver.open(place, codec, window, begin)
    return await FolderReceiver.open(place, codec, window, begin)


async def open_sender(place: str, codec: Codec[T], window: Window) -> Sender[T]:
    """The sending end at the place that a receiver names; over ZeroMQ this waits for the receiver."""
    if place.startswith("tcp://"):
        return await SocketSender.open(place, codec, window)
    return await FolderSender.open(place, codec, window)
