"""What a process leaves behind when it dies, or when whoever started it does: nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest

from filmroll.errors import RunError
from filmroll.run.processes.child import Child, leashed

FAMILY = ["sh", "-c", "sleep 1000 & echo $!; wait"]
"""Starts another process, says which, and waits for it."""
STUBBORN = ["sh", "-c", "trap '' TERM; sleep 1000 & echo $!; while :; do wait; done"]
"""The same, and cannot be asked to end."""


def gone(pid: int) -> bool:
    end = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@asynccontextmanager
async def started(command: list[str]) -> AsyncIterator[tuple[Child, int]]:
    ours, theirs = os.pipe()
    with os.fdopen(ours) as output:
        process = await asyncio.create_subprocess_exec(*command, stdout=theirs, start_new_session=True)
        os.close(theirs)
        line = output.readline()
        yield Child("one", process, lambda: line), int(line)
        assert output.read() == "", "somebody still holds the pipe, or wrote more"


def test_what_a_killed_process_has_started_ends_with_it() -> None:
    async def kill() -> int:
        async with started(FAMILY) as (child, grandchild):
            assert child.memory() > 0
            os.kill(child.pid, signal.SIGKILL)
            with pytest.raises(RunError, match=rf"process one ended with status -9 .*it last said: {grandchild}"):
                await child.watch(asyncio.sleep(30))
            assert child.memory() == 0
        return grandchild

    assert gone(asyncio.run(kill()))


def test_a_process_that_does_not_end_is_killed() -> None:
    async def stop() -> int:
        async with started(STUBBORN) as (child, grandchild):
            await child.stop(patience=0.2)
            assert child.exited.result() == -signal.SIGKILL
        return grandchild

    assert gone(asyncio.run(stop()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its starter has died")
def test_a_leashed_process_ends_with_its_starter() -> None:
    """kill -9 of the starter, which can then tell nobody."""
    program = "import os, subprocess, sys; from filmroll.run.processes.child import leashed; "
    program += "one = subprocess.Popen(leashed(['sleep', '1000'])); print(one.pid, flush=True); one.wait()"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        while psutil.Process(pid).name() != "sleep":
            time.sleep(0.01)
        starter.kill()
    assert gone(pid)


def test_a_process_whose_starter_has_died_already_does_not_begin() -> None:
    command = leashed([sys.executable, "-c", "print('begun')"])
    place = command.index(str(os.getpid()))
    done = subprocess.run([*command[:place], "1", *command[place + 1 :]], capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    assert done.returncode == 1
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stdout == "begun\n"
