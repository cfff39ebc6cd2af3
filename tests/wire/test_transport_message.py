"""Messages of a stream: whole or refused, whatever became of their bytes; tensors only where they may be."""

from __future__ import annotations

import random
import struct
import tracemalloc

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from filmroll.errors import MessageError, MessageVersionError
from filmroll.train.step import TrainStep
from filmroll.wire.arrays import Ints
from filmroll.wire.training import TrainingSample
from filmroll.wire.transport import Codec
from filmroll.wire.transport.message import MAGIC, VERSION, Head
from filmroll.wire.transport.tensors import EXTENSION, Tensor
from tests.store.effort import effort
from tests.wire.streams import CODEC, Note, note


class Picture(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    ids: Ints
    pixels: Tensor
    more: list[Tensor] = []


PROCESSED = Codec(Picture, tensors=True)


def joined(parts) -> bytes:
    return b"".join(bytes(part) for part in parts)


def read(codec, data: bytes):
    return codec.decode(codec.split(memoryview(data)))


def wrapped(body: bytes, *beside: bytes, number: int = 0) -> bytes:
    """A message with a right checksum, whatever its body."""
    parts = [memoryview(part) for part in (body, *beside)]
    from filmroll.wire.transport.message import _checksum

    head = Head(number, _checksum(number, parts), tuple(part.nbytes for part in parts))
    return head.pack() + joined(parts)


@given(
    st.integers(0, 2**64 - 1),
    st.text(max_size=50),
    arrays.arrays(np.int32, st.integers(0, 300)),
    arrays.arrays(np.float32, st.integers(0, 300), elements=st.floats(width=32, allow_nan=False)),
)
@settings(max_examples=50, deadline=None)
def test_a_message_comes_back_as_it_went(number, text, values, more):
    said, back = read(CODEC, joined(CODEC.encode(number, Note(text, values, more))))
    assert (said, back.text) == (number, text)
    np.testing.assert_array_equal(back.values, values)
    np.testing.assert_array_equal(back.more, more)


@pytest.mark.parametrize("dtype", ["<i4", "<f4", "u1", "<f2", "<i8"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4), (2, 1, 3, 2)])
def test_tensors_of_every_type_and_shape_travel_where_they_may(dtype, shape):
    pixels = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    parts = PROCESSED.encode(5, Picture("p", np.arange(3, dtype=np.int32), pixels, [pixels, pixels.copy()]))
    _, back = PROCESSED.decode(parts)
    assert back.pixels.dtype == pixels.dtype
    assert back.pixels.shape == shape
    np.testing.assert_array_equal(back.pixels, pixels)
    np.testing.assert_array_equal(back.more[1], pixels)
    assert not back.pixels.flags.writeable


def test_a_tensor_is_copied_on_neither_side():
    pixels = np.zeros((64, 1536), np.float32)
    parts = PROCESSED.encode(0, Picture("p", np.zeros(1, np.int32), pixels))
    _, back = PROCESSED.decode(parts)
    assert np.shares_memory(pixels, back.pixels)


def test_as_many_tensors_travel_as_a_step_has_images():
    """A step of 256 rollouts with 8 images each has 2,048, of two arrays."""
    one = np.zeros((1, 2), np.uint8)
    _, back = read(PROCESSED, joined(PROCESSED.encode(0, Picture("p", np.zeros(1, np.int32), one, [one] * 5000))))
    assert len(back.more) == 5000
    with pytest.raises(MessageError, match="65536 tensors, at most 65534"):
        PROCESSED.encode(0, Picture("p", np.zeros(1, np.int32), one, [one] * 65535))


def test_a_raw_run_refuses_tensors_on_both_sides():
    picture = Picture("p", np.zeros(1, np.int32), np.zeros((2, 2), np.float32))
    raw = Codec(Picture)
    with pytest.raises(MessageError, match="this run is raw"):
        raw.encode(0, picture)
    with pytest.raises(MessageError, match="this run is raw"):
        raw.decode(PROCESSED.encode(0, picture))


def test_tensors_where_none_are_declared_are_refused():
    for field in ("values", "more"):
        values = {"text": "x", "values": np.zeros(1, np.int32), "more": np.zeros(1, np.float32)}
        message = msgspec.defstruct("Odd", values.keys(), forbid_unknown_fields=True)(
            **values | {field: np.zeros((2, 2), np.int32)}
        )
        parts = Codec(type(message), tensors=True).encode(0, message)
        with pytest.raises(MessageError, match="flat array"):
            Codec(Note, tensors=True).decode(parts)


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [({"pixel_values": [0.5]}, "pixel_values"), ({"text": 7}, "text"), ({"values": b"abc"}, "values")],
)
def test_unknown_keys_and_wrong_types_are_named(extra, complaint):
    values = {"text": "x", "values": msgspec.msgpack.Ext(1, b""), "more": msgspec.msgpack.Ext(2, b"")}
    read(CODEC, wrapped(msgspec.msgpack.encode(values)))
    with pytest.raises(MessageError, match=f"no Note of format {VERSION}.*{complaint}"):
        read(CODEC, wrapped(msgspec.msgpack.encode(values | extra)))


@pytest.mark.parametrize("version", [0, VERSION + 1, 65535])
def test_another_version_is_refused_with_both_versions_named(version):
    data = bytearray(joined(CODEC.encode(0, note(0))))
    data[len(MAGIC) : len(MAGIC) + 2] = struct.pack("<H", version)
    with pytest.raises(MessageVersionError, match=f"writes format {version}, this process reads format {VERSION}"):
        read(CODEC, bytes(data))
    # Whatever that version has behind its number: it may be less than our head.
    with pytest.raises(MessageVersionError):
        read(CODEC, bytes(data[:10]))


def test_every_bit_matters():
    data = joined(CODEC.encode(3, note(0, 4)))
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MessageError):
            read(CODEC, bytes(flipped))


def test_every_truncation_and_every_addition_is_found():
    data = joined(PROCESSED.encode(3, Picture("p", np.arange(4, dtype=np.int32), np.zeros((2, 2), np.float32))))
    for end in range(len(data)):
        with pytest.raises(MessageError):
            read(PROCESSED, data[:end])
    with pytest.raises(MessageError):
        read(PROCESSED, data + b"\0")


def test_parts_that_begin_elsewhere_than_the_head_says_are_refused():
    """The bytes in all are the same, and so is their checksum."""
    head, body, tensor = PROCESSED.encode(3, Picture("p", np.zeros(1, np.int32), np.zeros((2, 2), np.float32)))
    whole = memoryview(bytes(body) + bytes(tensor))
    with pytest.raises(MessageError, match="not as long as its head says"):
        PROCESSED.decode([head, whole[:-8], whole[-8:]])


@pytest.mark.parametrize("codec", [CODEC, PROCESSED], ids=["raw", "processed"])
@given(st.binary(max_size=200), st.lists(st.binary(max_size=40), max_size=3))
@settings(max_examples=effort(200, 100_000), deadline=None)
@pytest.mark.reliability
def test_hostile_bodies_with_right_checksums_give_typed_errors(codec, body, beside):
    with pytest.raises(MessageError):
        read(codec, wrapped(body, *beside))


@pytest.mark.reliability
def test_a_changed_body_with_a_right_checksum_is_a_message_or_a_typed_error():
    """What somebody with the key could send: flips, cuts, repetitions, each under a checksum of its own."""
    draw = random.Random(0)
    picture = Picture("p", np.arange(9, dtype=np.int32), np.zeros((3, 2), np.float32), [np.zeros((0, 1), np.uint8)])
    _, body, *beside = (bytes(part) for part in PROCESSED.encode(0, picture))
    refused = 0
    for _ in range(effort(3000, 1_000_000)):
        changed = bytearray(body)
        for _ in range(draw.randrange(1, 4)):
            at = draw.randrange(len(changed))
            match draw.randrange(3):
                case 0:
                    changed[at] = draw.randrange(256)
                case 1:
                    del changed[at:]
                case 2:
                    changed[at:at] = changed[max(0, at - 4) : at]
            if not changed:
                break
        try:
            _, back = read(PROCESSED, wrapped(bytes(changed), *beside))
            assert isinstance(back, Picture)
        except MessageError:
            refused += 1
    assert refused > 1000


@pytest.mark.parametrize(
    "declared",
    [
        struct.pack("<BBI", 1, 2, 0) + struct.pack("<2Q", 2**40, 2**40),
        struct.pack("<BBI", 1, 2, 0) + struct.pack("<2Q", 2**63, 2),
        struct.pack("<BBI", 1, 2, 0) + struct.pack("<2Q", 2**64 - 1, 0),
        struct.pack("<BBI", 99, 1, 0) + struct.pack("<Q", 4),
        struct.pack("<BBI", 1, 200, 0),
        struct.pack("<BBI", 1, 1, 7) + struct.pack("<Q", 1),
        b"",
    ],
)
def test_a_forged_declaration_of_a_tensor_is_refused_before_anything_is_allocated(declared):
    values = {"name": "p", "ids": msgspec.msgpack.Ext(1, b""), "pixels": msgspec.msgpack.Ext(EXTENSION, declared)}
    data = wrapped(msgspec.msgpack.encode(values), b"abcd")
    tracemalloc.start()
    with pytest.raises(MessageError):
        read(PROCESSED, data)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_lengths_that_are_only_claimed_allocate_nothing():
    for claim in (
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa4text\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
    ):
        tracemalloc.start()
        with pytest.raises(MessageError):
            read(CODEC, wrapped(claim))
        assert tracemalloc.get_traced_memory()[1] < 100_000
        tracemalloc.stop()


def test_one_tensor_stands_for_one_declaration():
    part = msgspec.msgpack.Ext(EXTENSION, struct.pack("<BBI", 2, 1, 0) + struct.pack("<Q", 4))
    twice = {"name": "p", "ids": msgspec.msgpack.Ext(1, b""), "pixels": part, "more": [part]}
    with pytest.raises(MessageError, match="no part"):
        read(PROCESSED, wrapped(msgspec.msgpack.encode(twice), b"abcd"))
    once = {"name": "p", "ids": msgspec.msgpack.Ext(1, b""), "pixels": part}
    with pytest.raises(MessageError, match="without a declaration"):
        read(PROCESSED, wrapped(msgspec.msgpack.encode(once), b"abcd", b"abcd"))


class Loose(msgspec.Struct):
    inner: list[dict[str, Note]]


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    inner: tuple[Loose, ...] | None


def test_types_that_pass_over_unknown_keys_do_not_travel():
    for kind in (Loose, Outer):
        with pytest.raises(TypeError, match="Loose"):
            Codec(kind)
    for kind in (TrainStep, TrainingSample):
        Codec(kind)
