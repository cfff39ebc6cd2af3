"""msgpack for filmroll's own processes: one encoder, strict decoders, flat arrays as extensions."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from filmroll.errors import FilmrollError, RequestError
from filmroll.wire.arrays import check_array, decode_array, encode_array

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder(enc_hook=encode_array)


class Failure(msgspec.Struct, frozen=True):
    """An error on its way to another process; only errors of filmroll's tree keep their class."""

    code: str
    problem: str
    remedy: str = ""
    private: str = ""
    field: str | None = None
    index: int | None = None


def pack(message: Any) -> bytes:
    return _encoder.encode(message)


def unpack(body: bytes | memoryview, kind: type[T]) -> T:
    """The message of that type, or a RequestError: nothing is guessed, nothing is executed."""
    try:
        return msgspec.msgpack.decode(body, type=kind, ext_hook=decode_array, dec_hook=check_array)
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
        raise RequestError(f"this is no {getattr(kind, '__name__', kind)}: {error}") from None


def failure(error: FilmrollError) -> Failure:
    return Failure(error.code, error.problem, error.remedy, error.private, error.field, error.index)


def raised(failure: Failure, kinds: dict[str, type[FilmrollError]], otherwise: type[FilmrollError]) -> FilmrollError:
    """The error again, as the class that bears its code."""
    kind = kinds.get(failure.code, otherwise)
    return kind(
        failure.problem, remedy=failure.remedy, private=failure.private, field=failure.field, index=failure.index
    )
