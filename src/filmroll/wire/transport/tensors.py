"""Tensors beside a message: each declares its type and shape in the body and travels as a part of its own.

Parts are what a socket sends and a file takes without a copy: a tensor is 25 MB where the rest of
a sample is 150 KB.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, get_args, get_origin

import msgspec
import numpy as np
import numpy.typing as npt

from filmroll.wire.arrays import check_array, decode_array, encode_array, is_flat

Tensor = npt.NDArray[np.generic]
"""The type of a struct's field that holds an array of any shape."""

EXTENSION = 16
MAX_DIMENSIONS = 8
_DTYPES = tuple(np.dtype(name) for name in ("<i4", "<f4", "u1", "<f2", "<i8"))
_HEAD = struct.Struct("<BBI")


class Attachments:
    """The tensors of one message on its way out: the n-th belongs to the declaration that says n."""

    def __init__(self) -> None:
        self.parts: list[memoryview] = []

    def encode(self, value: Any) -> msgspec.msgpack.Ext:
        """For `enc_hook`: the flat arrays of a sample stay in the body, all others go beside it."""
        if not isinstance(value, np.ndarray) or is_flat(value) or value.dtype not in _DTYPES:
            return encode_array(value)
        if value.ndim > MAX_DIMENSIONS:
            raise TypeError(f"a tensor has {value.ndim} dimensions, at most {MAX_DIMENSIONS} travel")
        head = _HEAD.pack(_DTYPES.index(value.dtype), value.ndim, len(self.parts))
        flat = np.ascontiguousarray(value).reshape(-1)
        self.parts.append(flat.view(np.uint8).data.toreadonly())
        return msgspec.msgpack.Ext(EXTENSION, head + struct.pack(f"<{value.ndim}Q", *value.shape))


class Attached:
    """The tensors of one message that has come, each to be declared once."""

    def __init__(self, parts: Sequence[memoryview]) -> None:
        self._parts = dict(enumerate(parts))

    def decode(self, code: int, data: memoryview) -> Any:
        """For `ext_hook`: the declared tensor as a read-only view of its part."""
        if code != EXTENSION:
            return decode_array(code, data)
        if len(data) < _HEAD.size:
            raise ValueError("a tensor's declaration is cut off")
        kind, dimensions, number = _HEAD.unpack(data[: _HEAD.size])
        if kind >= len(_DTYPES) or dimensions > MAX_DIMENSIONS or len(data) != _HEAD.size + 8 * dimensions:
            raise ValueError("a tensor's declaration is none")
        shape = struct.unpack(f"<{dimensions}Q", data[_HEAD.size :])
        part = self._parts.pop(number, None)
        if part is None or math.prod(shape) * _DTYPES[kind].itemsize != len(part):
            raise ValueError(f"a tensor of {_DTYPES[kind]} and shape {shape} has no part of that size")
        return np.frombuffer(part, _DTYPES[kind]).reshape(shape)

    def check_all_declared(self) -> None:
        if self._parts:
            raise ValueError(f"{len(self._parts)} tensors came without a declaration")


def check_tensor(kind: Any, value: Any) -> Any:
    """For `dec_hook`: as `check_array`, and any array where a Tensor is declared."""
    if kind == Tensor or (get_origin(kind) is np.ndarray and get_args(get_args(kind)[1]) == (np.generic,)):
        if not isinstance(value, np.ndarray):
            raise ValueError("expected a tensor")
        return value
    return check_array(kind, value)
