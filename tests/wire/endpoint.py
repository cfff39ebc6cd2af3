"""One end of a stream as a process that can be killed: python -m tests.wire.endpoint sender|receiver PLACE STATE COUNT.

The receiver is a trainer in small: it keeps a hash of all that it was given, in order, saves that
and how much it is now and then, and only then acknowledges.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path

from filmroll.durable import write_whole
from tests.wire.streams import WINDOW, note, print_of, receiving, sending


async def send(place: str, count: int) -> None:
    async with sending(place) as sender:
        print("ready", flush=True)
        for number in range(sender.next, count):
            assert await sender.send(note(number)) == number
        await sender.settle()


async def receive(place: str, state: Path, count: int) -> None:
    seen, trained = load(state)
    saved = seen
    async with receiving(place, begin=seen) as receiver:
        print("ready", flush=True)
        await receiver.acknowledge(seen)
        while True:
            number, message = await receiver.receive()
            assert number == seen, (number, seen)
            seen, trained = seen + 1, print_of(message, trained)
            if random.random() < 0.3 or seen - saved == WINDOW.messages // 2 or seen == count:
                write_whole(state, [memoryview(json.dumps([seen, trained]).encode())])
                await receiver.acknowledge(seen)
                saved = seen


def load(state: Path) -> tuple[int, str]:
    return tuple(json.loads(state.read_text())) if state.exists() else (0, "")


def expected(count: int) -> str:
    trained = ""
    for number in range(count):
        trained = print_of(note(number), trained)
    return trained


if __name__ == "__main__":
    end, place, state, count = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    asyncio.run(send(place, count) if end == "sender" else receive(place, state, count))
