"""What can become of a folder, and who can speak to a socket: each is a clear error, or is mended."""

from __future__ import annotations

import asyncio
import json
import os
import random
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import zmq.asyncio
from zmq.utils import garbage

from filmroll.errors import DiskFullError, MessageError, MessageVersionError, TransportError
from filmroll.wire.packed import pack
from filmroll.wire.transport import Window
from filmroll.wire.transport.message import VERSION
from filmroll.wire.transport.sockets import PULSE, Hello
from tests.disks import files_no_longer_than
from tests.wire.streams import CODEC, WINDOW, new_place, note, receiving, sending, stream, within

# Folders


def message_file(place, number):
    return Path(place) / f"{number:012d}.message"


def fill(place, count):
    async def conversation():
        async with sending(place) as sender:
            for number in range(sender.next, count):
                await sender.send(note(number))

    within(conversation())


async def first(place, begin=0):
    async with receiving(place, begin=begin) as receiver:
        return await receiver.receive()


def test_a_folder_needs_no_receiver_to_be_filled(tmp_path):
    place = new_place("files", tmp_path)
    fill(place, 3)
    assert within(first(place, 2)).message.text == "note 2"


@pytest.mark.parametrize("left", [0, 10, 33, -1])
def test_a_truncated_file_is_a_typed_error(tmp_path, left):
    place = new_place("files", tmp_path)
    fill(place, 2)
    file = message_file(place, 0)
    os.truncate(file, left if left >= 0 else file.stat().st_size - 1)
    with pytest.raises(MessageError):
        within(first(place))


def test_a_message_under_another_number_is_refused(tmp_path):
    place = new_place("files", tmp_path)
    fill(place, 2)
    message_file(place, 1).replace(message_file(place, 0))
    with pytest.raises(MessageError, match="message 0 holds message 1"):
        within(first(place))


def test_a_file_that_is_missing_among_others_is_named_at_both_ends(tmp_path):
    place = new_place("files", tmp_path)
    fill(place, 3)
    message_file(place, 1).unlink()
    with pytest.raises(TransportError, match="message 1 is missing and message 2 is there"):
        fill(place, 4)
    within(first(place))
    with pytest.raises(TransportError, match="message 1 is missing and message 2 is there"):
        within(first(place, 1))


def test_a_file_larger_than_the_window_allows_is_not_read(tmp_path):
    place = new_place("files", tmp_path)
    fill(place, 1)
    os.truncate(message_file(place, 0), 1 << 40)
    with pytest.raises(MessageError, match="at most 524288 travel"):
        within(first(place))


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"format": "filmroll-stream-2", "acknowledged": 1}', b'{"acknowledged": -1}']
)
def test_a_damaged_cursor_is_a_typed_error_at_both_ends(tmp_path, damage):
    place = new_place("files", tmp_path)
    fill(place, 1)
    within(first(place))
    (tmp_path / "stream" / "cursor.json").write_bytes(damage)
    for end in (sending(place), receiving(place)):
        with pytest.raises(TransportError, match=r"cursor\.json"):
            within(end.__aenter__())


def test_what_a_kill_has_left_is_no_obstacle(tmp_path):
    """Half a draft; and files that were acknowledged but not yet removed."""
    place = new_place("files", tmp_path)
    fill(place, 3)
    (tmp_path / "stream" / ".000000000003.message.partial").write_bytes(b"half")
    (tmp_path / "stream" / "cursor.json").write_text(json.dumps({"format": "filmroll-stream-1", "acknowledged": 2}))
    fill(place, 4)
    assert within(first(place, 2)).number == 2
    left = sorted(path.name for path in (tmp_path / "stream").glob("*.message"))
    assert left == ["000000000002.message", "000000000003.message"]
    assert not list((tmp_path / "stream").glob(".*"))


def test_what_was_sent_can_be_withdrawn_before_it_is_received(tmp_path):
    place = new_place("files", tmp_path)
    fill(place, 5)

    async def conversation():
        async with stream(place) as (sender, receiver):
            await sender.withdraw(3)
            assert sender.next == 3
            assert await sender.send(note(33)) == 3
            assert [(await receiver.receive()).message.text for _ in range(4)][-2:] == ["note 2", "note 33"]

    within(conversation())


def test_a_full_disk_is_a_typed_error_and_the_next_try_goes_on(tmp_path):
    place = new_place("files", tmp_path)

    async def conversation():
        async with stream(place) as (sender, receiver):
            await sender.send(note(0))
            full = pytest.raises(DiskFullError, match=r"stream/000000000001.message, [\d,]+ bytes: File too large")
            with files_no_longer_than(4096), full:
                await sender.send(note(1, 2000))
            assert not list((tmp_path / "stream").glob(".*"))
            assert await sender.send(note(1, 2000)) == 1
            assert [(await receiver.receive()).number for _ in range(2)] == [0, 1]
            with files_no_longer_than(8), pytest.raises(DiskFullError, match=r"stream/cursor\.json"):
                await receiver.acknowledge(2)
            await receiver.acknowledge(2)
            await sender.settle()

    within(conversation())


def test_a_folder_that_cannot_be_is_a_typed_error(tmp_path):
    (tmp_path / "file").write_text("")
    for end in (sending(str(tmp_path / "file")), receiving(str(tmp_path / "file" / "below"))):
        with pytest.raises(TransportError):
            within(end.__aenter__())


# Sockets


@asynccontextmanager
async def stranger(place):
    socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(place.partition("#")[0])
    try:
        yield socket
    finally:
        socket.close()


def hello(version=VERSION, **changes):
    window = {"messages": WINDOW.messages, "nbytes": WINDOW.nbytes, "sent": -1} | changes
    return pack(Hello(version, **window))


def test_who_has_no_key_is_passed_over(tmp_path):
    place = new_place("zmq", tmp_path)
    draw = random.Random(0)

    async def conversation():
        async with stream(place) as (sender, receiver), stranger(place) as other:
            frames = [
                [b"", b"hello", b"s" * 16, hello()],
                [b"wrong", b"message", b"s" * 16, b"x"],
                [b"secret"],
                [b""] * 9,
            ]
            frames += [[draw.randbytes(draw.randrange(20)) for _ in range(draw.randrange(1, 8))] for _ in range(200)]
            for one in frames:
                await other.send_multipart(one)
            await sender.send(note(0))
            assert (await receiver.receive()).message.text == "note 0"
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await other.recv_multipart()

    within(conversation())


def test_whatever_somebody_with_the_key_sends_the_stream_goes_on(tmp_path):
    place = new_place("zmq", tmp_path)
    draw = random.Random(0)

    async def conversation():
        async with receiving(place) as receiver, stranger(place) as other:
            await other.send_multipart([b"secret", b"hello", b"s" * 16, hello()])
            good = [bytes(part) for part in CODEC.encode(0, note(0))]
            for _ in range(300):
                parts = [bytearray(part) for part in good]
                part = draw.choice(parts)
                part[draw.randrange(len(part))] ^= 1 << draw.randrange(8)
                await other.send_multipart([b"secret", b"message", b"s" * 16, *map(bytes, parts)])
                junk = [draw.randbytes(draw.randrange(40)) for _ in range(draw.randrange(1, 5))]
                await other.send_multipart([b"secret", draw.choice([b"hello", b"message", b"?"]), b"s" * 16, *junk])
            async with sending(place) as sender:
                await sender.send(note(0))
                for _ in range(10_000):
                    try:
                        assert (await receiver.receive()).message.text == "note 0"
                        break
                    except MessageError:
                        continue

    within(conversation())


def test_a_sender_of_another_version_is_told_so_and_so_is_the_receiver(tmp_path):
    place = new_place("zmq", tmp_path)

    async def conversation():
        async with receiving(place) as receiver, stranger(place) as other:
            await other.send_multipart([b"secret", b"hello", b"s" * 16, hello(VERSION + 1)])
            word, body = await other.recv_multipart()
            assert (word, msgspec.msgpack.decode(body)["code"]) == (b"refused", "message_version")
            with pytest.raises(MessageVersionError, match=f"writes format {VERSION + 1}"):
                await receiver.receive()

    within(conversation())


def test_a_sender_with_a_larger_window_is_refused_at_once(tmp_path):
    place = new_place("zmq", tmp_path)

    async def conversation():
        async with receiving(place):
            with pytest.raises(MessageError, match="window is larger"):
                async with sending(place, window=Window(WINDOW.messages, WINDOW.nbytes * 2)):
                    pass

    within(conversation())


def test_a_receiver_holds_no_more_than_its_window_whoever_sends(tmp_path):
    place = new_place("zmq", tmp_path)

    async def conversation():
        async with receiving(place) as receiver, stranger(place) as other:
            await other.send_multipart([b"secret", b"hello", b"s" * 16, hello()])
            for number in range(3 * WINDOW.messages):
                await other.send_multipart([b"secret", b"message", b"s" * 16, *CODEC.encode(number, note(number))])
            for number in range(WINDOW.messages):
                assert (await receiver.receive()).number == number
            with pytest.raises(MessageError, match="more than the window"):
                await receiver.receive()

    within(conversation())


class Unsteady:
    """A line between the two that can be cut at any moment, whatever is on it."""

    def __init__(self, port, step=1000):
        self._port = port
        self._step = step
        self._ends = []
        self.carried = 0

    async def open(self):
        self.server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        return self.server.sockets[0].getsockname()[1]

    def cut(self):
        for end in self._ends:
            end.transport.abort()
        self._ends.clear()

    async def _join(self, reader, writer):
        try:
            reader_there, writer_there = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        self._ends += [writer, writer_there]
        await asyncio.gather(self._pump(reader, writer_there), self._pump(reader_there, writer))

    async def _pump(self, reader, writer):
        try:
            while data := await reader.read(self._step):
                self.carried += len(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.transport.abort()


def test_what_is_lost_on_the_way_is_sent_again_in_order(tmp_path):
    place = new_place("zmq", tmp_path)
    count = 150

    async def conversation():
        line = Unsteady(int(place.partition("#")[0].rpartition(":")[2]))
        port = await line.open()
        async with receiving(place) as receiver, sending(f"tcp://127.0.0.1:{port}#secret") as sender:

            async def cut_now_and_then():
                while True:
                    await asyncio.sleep(0.1)
                    line.cut()

            async def send():
                for number in range(count):
                    assert await sender.send(note(number)) == number

            cutting, all_sent = asyncio.create_task(cut_now_and_then()), asyncio.create_task(send())
            for number in range(count):
                assert (await receiver.receive()).number == number
                await receiver.acknowledge(number + 1)
                await asyncio.sleep(0.001)
            await all_sent
            cutting.cancel()
            await sender.settle()
        line.cut()
        line.server.close()

    within(conversation(), 60)


def test_what_arrives_is_sent_once(tmp_path):
    """However much is on its way when hellos are exchanged."""
    place = new_place("zmq", tmp_path)
    window = Window(64, 1 << 27)
    count = 80

    async def conversation():
        line = Unsteady(int(place.partition("#")[0].rpartition(":")[2]), step=1 << 18)
        port = await line.open()
        there = f"tcp://127.0.0.1:{port}#secret"
        async with receiving(place, window=window) as receiver, sending(there, window=window) as sender:

            async def send():
                for number in range(count):
                    await sender.send(note(number, 400_000))

            all_sent = asyncio.create_task(send())
            for number in range(count):
                assert (await receiver.receive()).number == number
                await asyncio.sleep(8 * PULSE / count)
                if number % 4 == 3:
                    await receiver.acknowledge(number + 1)
            await all_sent
            await sender.settle()
        line.server.close()
        assert sender.sent_bytes < line.carried < 1.01 * sender.sent_bytes

    within(conversation(), 60)


def test_nothing_is_lent_to_a_socket_that_was_closed(tmp_path):
    """Its thread would read memory that is freed, and end the process."""
    place = new_place("zmq", tmp_path)
    window = Window(64, 1 << 29)

    async def conversation():
        line = Unsteady(int(place.partition("#")[0].rpartition(":")[2]))
        port = await line.open()
        async with receiving(place, window=window):
            async with sending(f"tcp://127.0.0.1:{port}#secret", window=window) as sender:
                for number in range(16):
                    await sender.send(note(number, 1_000_000))
                while not garbage.gc.refs:  # noqa: ASYNC110 - it sets no event
                    await asyncio.sleep(0.001)
            assert not garbage.gc.refs
        line.cut()
        line.server.close()

    within(conversation())
