"""Numpy arrays inside msgpack, as typed extensions: no pickle, no object, read without a copy."""

from __future__ import annotations

from typing import Any, get_args, get_origin

import msgspec
import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.uint8]

_DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<i4"), 2: np.dtype("<f4"), 3: np.dtype("u1")}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def encode_array(value: Any) -> msgspec.msgpack.Ext:
    """For `enc_hook`: int32, float32 and uint8 arrays of one dimension; msgspec reads their memory itself."""
    if isinstance(value, np.ndarray) and is_flat(value):
        return msgspec.msgpack.Ext(_CODES[value.dtype], np.ascontiguousarray(value).view(np.uint8).data)
    raise TypeError(f"{_name(value)} does not travel between filmroll's processes")


def is_flat(value: npt.NDArray[Any]) -> bool:
    """Whether an array travels inside the body of a message."""
    return value.ndim == 1 and value.dtype in _CODES


def decode_array(code: int, data: memoryview) -> Any:
    """For `ext_hook`: a read-only view of the message's own bytes."""
    dtype = _DTYPES.get(code)
    if dtype is None or len(data) % dtype.itemsize:
        raise ValueError(f"extension {code} of {len(data)} bytes is no array")
    return np.frombuffer(memoryview(data).toreadonly(), dtype)


def check_array(kind: Any, value: Any) -> Any:
    """For `dec_hook`: the value if it is an array of the elements that the field is declared with."""
    if get_origin(kind) is not np.ndarray:
        raise NotImplementedError(f"{kind} does not travel between filmroll's processes")
    (wanted,) = get_args(get_args(kind)[1])
    if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype != wanted:
        raise ValueError(f"expected a flat array of {np.dtype(wanted)}")
    return value


def _name(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} with {value.ndim} dimensions"
    return type(value).__name__
