"""What every transport promises, asked of each: order, back-pressure, restarts, and clear refusals."""

from __future__ import annotations

import asyncio
import tracemalloc

import numpy as np
import pytest

from filmroll.errors import MessageError, StreamTakenError, TransportError
from filmroll.wire.transport import Window
from tests.wire.streams import TRANSPORTS, Note, new_place, note, print_of, receiving, sending, stream, within


@pytest.fixture(params=TRANSPORTS)
def place(request, tmp_path):
    return new_place(request.param, tmp_path)


async def stays_waiting(work, seconds=0.3):
    task = asyncio.ensure_future(work)
    await asyncio.wait({task}, timeout=seconds)
    assert not task.done()
    return task


def test_messages_come_whole_in_order_and_numbered(place):
    async def conversation():
        async with stream(place, window=Window(100, 1 << 24)) as (sender, receiver):
            assert [await sender.send(note(number)) for number in range(50)] == list(range(50))
            for number in range(50):
                said, message = await receiver.receive()
                assert said == number
                assert print_of(message) == print_of(note(number))
            await receiver.acknowledge(50)
            await sender.settle()
            assert sender.next == 50
            assert sender.sent_bytes > sum(note(number).values.nbytes * 2 for number in range(50))

    within(conversation())


def test_arrays_are_read_only_views_of_the_message(place):
    async def conversation():
        async with stream(place) as (sender, receiver):
            await sender.send(note(0, 1000))
            message = (await receiver.receive()).message
            for array in (message.values, message.more):
                assert not array.flags.writeable
                assert not array.flags.owndata
                with pytest.raises(ValueError, match="read-only"):
                    array[0] = 1

    within(conversation())


def test_several_may_send_at_once(place):
    async def conversation():
        async with stream(place, window=Window(100, 1 << 24)) as (sender, receiver):
            numbers = await asyncio.gather(*(sender.send(note(number)) for number in range(20)))
            texts = {(await receiver.receive()).message.text for _ in range(20)}
            assert sorted(numbers) == list(range(20))
            assert texts == {note(number).text for number in range(20)}

    within(conversation())


@pytest.mark.parametrize("window", [Window(4, 1 << 20), Window(1000, 40_000)], ids=["messages", "bytes"])
def test_a_slow_receiver_slows_the_sender(place, window):
    """4 messages of 8 KB fit into either window. Receiving makes no room, only acknowledging does."""

    async def conversation():
        async with stream(place, window=window) as (sender, receiver):
            for number in range(4):
                await sender.send(note(number, 1000))
            assert sender.crowded
            fifth = await stays_waiting(sender.send(note(4, 1000)))
            for _ in range(4):
                await receiver.receive()
            await stays_waiting(asyncio.shield(fifth))
            await receiver.acknowledge(1)
            assert await fifth == 4
            assert (await receiver.receive()).number == 4
            await receiver.acknowledge(5)
            await sender.settle()
            assert not sender.crowded

    within(conversation())


def test_a_send_that_is_given_up_leaves_no_gap(place):
    async def conversation():
        async with stream(place, window=Window(2, 1 << 20)) as (sender, receiver):
            await sender.send(note(0))
            await sender.send(note(1))
            waiting = await stays_waiting(sender.send(note(99)))
            waiting.cancel()
            await asyncio.wait({waiting})
            await receiver.receive()
            await receiver.receive()
            await receiver.acknowledge(2)
            assert await sender.send(note(2)) == 2
            assert (await receiver.receive()).message.text == "note 2"

    within(conversation())


def test_a_receiver_that_is_restarted_gets_what_was_not_acknowledged_and_nothing_else(place):
    async def conversation():
        async with receiving(place) as receiver, sending(place) as sender:
            for number in range(6):
                await sender.send(note(number))
            for _ in range(5):
                await receiver.receive()
            await receiver.acknowledge(3)
            await receiver.close()
            async with receiving(place, begin=3) as again:
                await sender.send(note(6))
                assert [(await again.receive()).message.text for _ in range(4)] == [f"note {n}" for n in range(3, 7)]
                await stays_waiting(again.receive())
                await again.acknowledge(7)
                await sender.settle()

    within(conversation())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_sender_goes_on_with_a_receiver_that_was_started_again_elsewhere(transport, tmp_path):
    """As a process that dies comes again: at another port, with another key."""

    async def conversation():
        here = new_place(transport, tmp_path)
        there = here if transport == "files" else new_place(transport, tmp_path).replace("#secret", "#another")
        async with receiving(here) as receiver, sending(here) as sender:
            for number in range(5):
                await sender.send(note(number))
            for _ in range(4):
                await receiver.receive()
            await receiver.acknowledge(2)
            await receiver.close()
            async with receiving(there, begin=3) as again:
                await sender.move(there)
                assert [(await again.receive()).number for _ in range(2)] == [3, 4]
                assert await sender.send(note(5)) == 5
                assert (await again.receive()).message.text == "note 5"
                await again.acknowledge(6)
                await sender.settle()

    within(conversation())


def test_a_stream_that_goes_on_elsewhere_misses_nothing_that_it_lost(tmp_path):
    """A receiver that begins before what was acknowledged wants what nobody has any more."""

    async def conversation():
        async with stream(new_place("zmq", tmp_path)) as (sender, receiver):
            for number in range(3):
                await sender.send(note(number))
                await receiver.receive()
            await receiver.acknowledge(3)
            await sender.settle()
            there = new_place("zmq", tmp_path)
            async with receiving(there, begin=1):
                await sender.move(there)
                await sender.send(note(3))
                with pytest.raises(TransportError, match="wants message 1 again"):
                    await sender.settle()

    within(conversation())


def test_a_receiver_may_know_more_than_it_has_acknowledged(place):
    """It saved, and was killed before it could say so."""

    async def conversation():
        async with receiving(place) as receiver, sending(place) as sender:
            for number in range(4):
                await sender.send(note(number))
            await receiver.receive()
            await receiver.receive()
            await receiver.close()
            async with receiving(place, begin=2) as again:
                assert (await again.receive()).number == 2
                await again.acknowledge(4 - 1)
                assert (await again.receive()).number == 3

    within(conversation())


def test_a_sender_that_is_restarted_goes_on_where_the_stream_is_safe(place):
    async def conversation():
        async with receiving(place, window=Window(100, 1 << 20)) as receiver:
            async with sending(place) as sender:
                for number in range(5):
                    await sender.send(note(number))
                for number in range(3):
                    assert (await receiver.receive()).number == number
                await receiver.acknowledge(2)
            async with sending(place) as again:
                assert 2 <= again.next <= 5
                for number in range(again.next, 8):
                    assert await again.send(note(number)) == number
                rest = [await receiver.receive() for _ in range(3, 8)]
                assert [(number, message.text) for number, message in rest] == [(n, f"note {n}") for n in range(3, 8)]
                await receiver.acknowledge(8)
                await again.settle()

    within(conversation())


def test_both_may_be_restarted(place):
    async def conversation():
        async with stream(place) as (sender, receiver):
            for number in range(5):
                await sender.send(note(number))
            await receiver.receive()
            await receiver.acknowledge(1)
        async with stream(place, begin=1) as (sender, receiver):
            for number in range(sender.next, 7):
                await sender.send(note(number))
            assert [(await receiver.receive()).message.text for _ in range(6)] == [f"note {n}" for n in range(1, 7)]

    within(conversation())


def test_a_receiver_that_goes_back_behind_its_word_stops_the_sender_and_is_served_by_the_next(place):
    """Whoever deletes the newest checkpoint wants messages again that nobody has any more."""

    async def conversation():
        async with receiving(place) as receiver, sending(place) as sender:
            for number in range(4):
                await sender.send(note(number))
            for _ in range(4):
                await receiver.receive()
            await receiver.acknowledge(4)
            await sender.settle()
            await sender.send(note(4))
            await receiver.close()
            async with receiving(place, begin=1) as again:
                with pytest.raises(TransportError, match="wants message 1 again, and had acknowledged all before 4"):
                    await sender.settle()
                await sender.close()
                async with sending(place) as other:
                    assert other.next == 1
                    await other.send(note(1))
                    assert (await again.receive()).message.text == "note 1"

    within(conversation())


def test_there_is_one_receiver(place):
    async def conversation():
        async with stream(place) as (sender, receiver):
            with pytest.raises(StreamTakenError):
                async with receiving(place):
                    pass
            await sender.send(note(0))
            assert (await receiver.receive()).number == 0

    within(conversation())


def test_of_two_senders_one_goes_on_and_the_other_is_told(place):
    async def send_some(sender):
        for _ in range(8):
            await sender.send(note(sender.next))
            await asyncio.sleep(0.1)

    async def another():
        async with sending(place, window=Window(20, 1 << 20)) as sender:
            await send_some(sender)

    async def conversation():
        async with stream(place, window=Window(20, 1 << 20)) as (sender, receiver):
            ends = await asyncio.gather(send_some(sender), another(), return_exceptions=True)
            assert sorted(map(type, ends), key=str) == [type(None), StreamTakenError]
            assert [(await receiver.receive()).message.text for _ in range(8)] == [f"note {n}" for n in range(8)]

    within(conversation())


def test_what_is_too_large_is_refused_before_it_is_sent(place):
    async def conversation():
        async with stream(place) as (sender, receiver):
            with pytest.raises(MessageError, match=r"at most 524288 travel.*window_mb"):
                await sender.send(note(0, 1 << 17))
            await sender.send(note(0))
            assert (await receiver.receive()).number == 0

    within(conversation())


def test_only_what_was_handed_out_can_be_acknowledged(place):
    async def conversation():
        async with stream(place) as (sender, receiver):
            await sender.send(note(0))
            with pytest.raises(TransportError, match="cannot be acknowledged"):
                await receiver.acknowledge(1)
            await receiver.receive()
            await receiver.acknowledge(1)
            with pytest.raises(TransportError, match="cannot be acknowledged"):
                await receiver.acknowledge(0)

    within(conversation())


def test_a_stream_begins_where_its_receiver_says(place):
    async def conversation():
        async with stream(place, begin=7) as (sender, receiver):
            assert sender.next == 7
            await sender.send(note(7))
            assert (await receiver.receive()).number == 7

    within(conversation())


def test_a_message_that_cannot_be_sent_takes_no_number(place):
    async def conversation():
        async with stream(place) as (sender, receiver):
            with pytest.raises(MessageError, match="carries 1 tensors, and this run is raw"):
                await sender.send(Note("x", np.zeros((2, 2), np.int32), np.zeros(1, np.float32)))
            assert await sender.send(note(0)) == 0
            assert (await receiver.receive()).number == 0

    within(conversation())


def test_memory_does_not_grow_with_what_was_sent(place):
    async def conversation():
        async with stream(place) as (sender, receiver):
            tracemalloc.start()
            for number in range(100):
                await sender.send(note(number, 25_000))
                await receiver.receive()
                await receiver.acknowledge(number + 1)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert sender.sent_bytes > 20e6
            assert peak < 6e6

    within(conversation(), 60)
