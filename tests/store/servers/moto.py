"""moto's S3 server: an emulator in Python, fast enough for every run of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.store.servers.endpoint import S3Server

KEYS_OF_A_PAGE = "5"
"""So few that a listing of more than a handful takes several requests."""

SERVE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()
server.stop()
"""


@contextmanager
def started_moto() -> Iterator[S3Server]:
    """The server in a process of its own, with one empty bucket; it ends with this one, however that ends."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"MOTO_S3_DEFAULT_MAX_KEYS": KEYS_OF_A_PAGE},
        text=True,
    ) as process:
        try:
            server = S3Server(process.stdout.readline().strip())
            server.make_bucket()
            yield server
        finally:
            process.kill()
