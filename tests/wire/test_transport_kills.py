"""kill -9 of real senders and receivers at any moment: every message is trained once, in order."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest

from tests.store.effort import effort
from tests.wire import endpoint
from tests.wire.streams import TRANSPORTS, new_place

KILLS = effort(3, 100)
MESSAGES = {"zmq": effort(600, 30_000), "files": effort(300, 10_000)}
VICTIMS = [("sender",), ("receiver",), ("sender", "receiver")]


@pytest.mark.reliability
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_whoever_is_killed_nothing_is_lost_or_trained_twice(tmp_path, transport):
    place, state, count = new_place(transport, tmp_path), tmp_path / "state.json", MESSAGES[transport]
    draw = random.Random(transport)

    def start(end):
        command = [sys.executable, "-m", "tests.wire.endpoint", end, place, str(state), str(count)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    ends = {end: start(end) for end in ("receiver", "sender")}
    under_way = 0
    try:
        for kill in range(KILLS):
            victims = VICTIMS[kill % 3]
            for victim in victims:
                ends[victim].stdout.readline()
            time.sleep(draw.random() * 0.2)
            under_way += ends["sender"].poll() is None
            for victim in victims:
                ends[victim].kill()
                assert ends[victim].communicate()[1] == ""
                ends[victim] = start(victim)
        _, complaint = ends["sender"].communicate(timeout=effort(60, 1200))
        assert (ends["sender"].returncode, complaint) == (0, "")
        assert ends["receiver"].poll() is None, ends["receiver"].communicate()[1]
    finally:
        for process in ends.values():
            process.kill()
            process.communicate()
    assert endpoint.load(state) == (count, endpoint.expected(count))
    assert under_way > KILLS // 2, "all was over before it was killed"
