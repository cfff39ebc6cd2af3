"""One message of a stream as bytes: a head, a msgpack body, and tensors beside it where they may travel.

The same parts go over a socket, each a frame, and into a file, one after the other.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
import msgspec.inspect

from filmroll.errors import MessageError, MessageVersionError
from filmroll.wire.transport.tensors import Attached, Attachments, check_tensor

T = TypeVar("T")

MAGIC = b"filmroll"
VERSION = 1
"""Raised whenever what an older filmroll wrote would be read wrongly."""

MAX_PARTS = 2**16 - 1
_HEAD = struct.Struct("<8sHHIQ")
_SIZE = struct.Struct("<Q")
_SHORTEST = struct.Struct("<8sH")

Parts = list[memoryview]


@dataclass(frozen=True, slots=True)
class Head:
    """What is said before a message's body: its number in the stream, a checksum, and how long its parts are."""

    number: int
    checksum: int
    sizes: tuple[int, ...]

    def pack(self) -> bytes:
        fixed = _HEAD.pack(MAGIC, VERSION, len(self.sizes), self.checksum, self.number)
        return fixed + struct.pack(f"<{len(self.sizes)}Q", *self.sizes)


class Codec(Generic[T]):
    """Messages of one type to parts and back. Raw streams carry no tensors; `tensors` lets a processed one."""

    def __init__(self, kind: type[T], *, tensors: bool = False) -> None:
        _check_strict(kind)
        self._kind = kind
        self._tensors = tensors
        # Built before any thread is: two that are the first to decode a type at once crash in msgspec 0.22.
        msgspec.msgpack.Decoder(kind, dec_hook=check_tensor)

    def encode(self, number: int, message: T) -> Parts:
        """Head, body, tensors. Nothing is copied but flat arrays, once, into the body."""
        beside = Attachments()
        try:
            body = msgspec.msgpack.encode(message, enc_hook=beside.encode)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise MessageError(f"the message cannot be sent: {error}") from None
        if beside.parts and not self._tensors:
            raise _no_tensors(len(beside.parts))
        if len(beside.parts) >= MAX_PARTS:
            raise MessageError(f"the message has {len(beside.parts)} tensors, at most {MAX_PARTS - 1} travel")
        parts = [memoryview(body), *beside.parts]
        head = Head(number, _checksum(number, parts), tuple(part.nbytes for part in parts))
        return [memoryview(head.pack()), *parts]

    def decode(self, parts: Sequence[memoryview]) -> tuple[int, T]:
        """The message and its number, its arrays views of these parts; anything else is a MessageError."""
        if not parts:
            raise MessageError("the message has no parts")
        head = read_head(parts[0])
        if tuple(part.nbytes for part in parts[1:]) != head.sizes:
            raise MessageError(f"message {head.number} is not as long as its head says", remedy="It was cut off")
        if _checksum(head.number, parts[1:]) != head.checksum:
            raise MessageError(f"message {head.number} was damaged on its way: its checksum differs")
        if len(parts) > 2 and not self._tensors:
            raise _no_tensors(len(parts) - 2)
        beside = Attached(parts[2:])
        try:
            message = msgspec.msgpack.decode(parts[1], type=self._kind, ext_hook=beside.decode, dec_hook=check_tensor)
            beside.check_all_declared()
        except (msgspec.DecodeError, ValueError, TypeError, OverflowError, RecursionError) as error:
            name = self._kind.__name__
            raise MessageError(f"message {head.number} is no {name} of format {VERSION}: {error}") from None
        return head.number, message

    def split(self, data: memoryview) -> Parts:
        """The parts of a message that lie one after the other."""
        head = read_head(data)
        at = _HEAD.size + _SIZE.size * len(head.sizes)
        parts = [data[:at]]
        for size in head.sizes:
            parts.append(data[at : at + size])
            at += size
        if at != data.nbytes:
            raise MessageError(
                f"message {head.number} has {data.nbytes} bytes, its head says {at}",
                remedy="It was cut off",
            )
        return parts


def read_head(data: memoryview) -> Head:
    """The head that these bytes begin with; a version is looked at before anything that it could change."""
    if data.nbytes < _SHORTEST.size or data[: len(MAGIC)] != MAGIC:
        raise MessageError("this is no message of filmroll")
    _, version = _SHORTEST.unpack(data[: _SHORTEST.size])
    check_version(version)
    if data.nbytes < _HEAD.size:
        raise MessageError("the message's head is cut off")
    _, _, count, checksum, number = _HEAD.unpack(data[: _HEAD.size])
    end = _HEAD.size + _SIZE.size * count
    if not 1 <= count <= MAX_PARTS or data.nbytes < end:
        raise MessageError(f"message {number} has a head of {data.nbytes} bytes for {count} parts")
    return Head(number, checksum, struct.unpack(f"<{count}Q", data[_HEAD.size : end]))


def check_version(version: int) -> None:
    if version != VERSION:
        raise MessageVersionError(
            f"the sender writes format {version}, this process reads format {VERSION}",
            remedy="Run the same filmroll at both ends",
        )


def _no_tensors(count: int) -> MessageError:
    return MessageError(
        f"the message carries {count} tensors, and this run is raw",
        remedy="Send references; tensors travel only where images are processed by the sender",
    )


def _checksum(number: int, parts: Sequence[memoryview]) -> int:
    value = zlib.crc32(_SIZE.pack(number))
    for part in parts:
        value = zlib.crc32(part, value)
    return value


def _check_strict(kind: Any) -> None:
    """A type that would pass over unknown keys cannot tell another version's message from its own."""
    for found in _structs(msgspec.inspect.type_info(kind), set()):
        if not found.forbid_unknown_fields:
            raise TypeError(f"{found.cls.__name__} has to forbid unknown fields to travel in a stream")


def _structs(info: Any, seen: set[type]) -> Iterator[msgspec.inspect.StructType]:
    if isinstance(info, msgspec.inspect.StructType):
        if info.cls in seen:
            return
        seen.add(info.cls)
        yield info
        inner: list[Any] = [field.type for field in info.fields]
    else:
        inner = [getattr(info, name, None) for name in ("type", "item_type", "key_type", "value_type")]
        inner += [*getattr(info, "types", ()), *getattr(info, "item_types", ())]
    for one in inner:
        if isinstance(one, msgspec.inspect.Type):
            yield from _structs(one, seen)
