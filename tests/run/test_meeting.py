"""Where the nodes of a trainer meet: at a port that nobody can take between its being named and torchrun's using it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.processes.launch import announced

SIGN = 7
NODE = f"""
import sys
from pathlib import Path
from filmroll.run.directory import RunDirectory
from filmroll.run.members.meeting import meeting
from filmroll.run.processes.torchrun import start_ranks

run = RunDirectory.open(Path(sys.argv[1]))
place = meeting(run, run.config(), int(sys.argv[2]), {SIGN})
print("knows it", flush=True)
input()
start_ranks(2, ["-c", "import os; print('rank', os.environ['RANK'], os.environ['MASTER_PORT'])"], place)
"""
"""A node that comes to the meeting when it is told to: there, each of its ranks says who it is."""


def node(run: RunDirectory, number: int, temporary: Path) -> subprocess.Popen[str]:
    started = subprocess.Popen(
        [sys.executable, "-c", NODE, str(run.path), str(number)], env=os.environ | {"TMPDIR": str(temporary)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert started.stdout is not None
    assert started.stdout.readline() == "knows it\n", started.communicate()
    return started


def taken(host: str, port: int) -> bool:
    try:
        socket.create_server((host, port)).close()
    except OSError:
        return True
    return False


def test_the_port_is_the_first_nodes_from_before_it_is_known(tmp_path: Path) -> None:
    sections = {"run": {"directory": str(tmp_path / "run")}, "trainer": {"ranks": 2, "nodes": 2}}
    run = RunDirectory.create(Config.model_validate({**sections, "cluster": {"patience_s": 60}}))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    first = node(run, 0, temporary)
    place, _, sign = (announced(run, "trainer-meeting") or "").partition("#")
    host, _, port = place.rpartition(":")
    assert (host, sign) == ("127.0.0.1", str(SIGN))
    second = node(run, 1, temporary)
    assert taken("127.0.0.1", int(port))
    assert taken("", int(port))
    said = ""
    for one in (second, first):
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    for one in (first, second):
        output, complaint = one.communicate(timeout=200)
        assert one.returncode == 0, complaint
        said += output
    assert sorted(said.splitlines()) == [f"rank 0 {port}", f"rank 1 {port}"]
    assert not taken("127.0.0.1", int(port))
    assert not list(temporary.iterdir())
