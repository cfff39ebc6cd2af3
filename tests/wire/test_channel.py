"""Calls between processes: answers by number, errors by class, arrays whole."""

import asyncio
from typing import Any

import msgspec
import numpy as np
import pytest

from filmroll.errors import ConfigError, FilmrollError, GridError, PeerError, RequestError, every_error
from filmroll.wire.arrays import Floats, Ints
from filmroll.wire.channel import Caller, Listener
from filmroll.wire.packed import failure, pack, unpack


class Text(msgspec.Struct, frozen=True):
    text: str
    delay: float = 0.0


class Numbers(msgspec.Struct, frozen=True):
    values: Any


async def echo(message: Text) -> Text:
    await asyncio.sleep(message.delay)
    return message


async def refuse(_message: Text) -> Text:
    raise GridError("not that grid", remedy="Take another", field="payload", index=3)


async def fall(_message: Text) -> Text:
    raise ZeroDivisionError("oops")


def talk(conversation):
    async def both():
        listener = Listener({"echo": (Text, echo), "refuse": (Text, refuse), "fall": (Text, fall)})
        serving = asyncio.create_task(listener.serve())
        caller = Caller(listener.endpoint)
        try:
            async with asyncio.timeout(20):
                return await conversation(caller)
        finally:
            caller.close()
            serving.cancel()

    return asyncio.run(both())


def test_calls_run_side_by_side():
    async def conversation(caller):
        slow, fast = (
            asyncio.create_task(caller.call("echo", Text(text, delay), Text))
            for text, delay in (("slow", 0.3), ("fast", 0.0))
        )
        assert (await fast).text == "fast"
        assert not slow.done()
        assert (await slow).text == "slow"

    talk(conversation)


def test_an_error_keeps_its_class_and_its_place():
    async def conversation(caller):
        with pytest.raises(GridError) as refusal:
            await caller.call("refuse", Text("x"), Text)
        assert (refusal.value.field, refusal.value.index) == ("payload", 3)
        assert "Take another" in str(refusal.value)
        assert (await caller.call("echo", Text("after"), Text)).text == "after"

    talk(conversation)


def test_a_fall_of_the_other_side_reaches_the_caller():
    async def conversation(caller):
        with pytest.raises(PeerError, match="ZeroDivisionError: oops"):
            await caller.call("fall", Text("x"), Text)
        with pytest.raises(PeerError, match=r"test_channel\.py, line \d+, in fall; .* log"):
            await caller.call("fall", Text("x"), Text)
        with pytest.raises(PeerError, match="no call is named"):
            await caller.call("dance", Text("x"), Text)
        with pytest.raises(RequestError, match="no Text"):
            await caller.call("echo", Numbers(np.zeros(3, np.int32)), Text)
        assert (await caller.call("echo", Text("after"), Text)).text == "after"

    talk(conversation)


@pytest.mark.parametrize("frames", [[b"x"], [b"1", b"x"], [b"1", b"\xc1"], [b"1", b"a", b"b"], [b""] * 9])
def test_whatever_a_stranger_sends_the_listener_goes_on(frames):
    async def conversation(caller):
        await caller._socket.send_multipart(frames)
        await caller._socket.send_multipart([caller._key, *frames])
        assert (await caller.call("echo", Text("after"), Text)).text == "after"

    talk(conversation)


def test_who_has_no_key_gets_no_answer():
    async def conversation(caller):
        caller._key, key = b"0" * 32, caller._key
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await caller.call("echo", Text("let me in"), Text)
        caller._key = key
        assert (await caller.call("echo", Text("after"), Text)).text == "after"

    talk(conversation)


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.uint8])
def test_arrays_come_back_as_they_went(dtype):
    values = np.arange(5).astype(dtype)
    back = unpack(pack(Numbers(values)), Numbers).values
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize(
    "value", [np.zeros((2, 2), np.float32), np.zeros(2, np.float64), np.zeros(2, object), object()]
)
def test_no_other_value_travels(value):
    with pytest.raises(TypeError):
        pack(Numbers(value))


def test_a_forged_array_is_refused():
    with pytest.raises(RequestError):
        unpack(msgspec.msgpack.encode({"values": msgspec.msgpack.Ext(1, b"abc")}), Numbers)
    with pytest.raises(RequestError):
        unpack(msgspec.msgpack.encode({"values": msgspec.msgpack.Ext(99, b"abcd")}), Numbers)


@pytest.mark.parametrize("kind", list(every_error()))
def test_every_error_survives_the_way(kind):
    error = kind("a problem", remedy="Mend it", private="/secret", field="f", index=1)
    assert unpack(pack(failure(error)), type(failure(error))).code == kind.code
    assert "/secret" not in str(error.wire())


def test_codes_name_one_error_each():
    codes = [kind.code for kind in every_error(FilmrollError)]
    assert len(set(codes)) == len(codes)
    assert ConfigError.code in codes


class Counted(msgspec.Struct, frozen=True):
    values: Ints
    more: Floats | None = None


def test_an_array_field_takes_its_own_elements_and_nothing_else():
    whole = Counted(np.arange(3, dtype=np.int32), np.zeros(2, np.float32))
    assert unpack(pack(whole), Counted).more.tolist() == [0.0, 0.0]
    assert unpack(pack(Counted(np.zeros(1, np.int32))), Counted).more is None
    for wrong in (np.zeros(3, np.float32), [1, 2, 3], "abc", None, 7):
        with pytest.raises(RequestError):
            unpack(pack(Numbers(wrong)), Counted)
