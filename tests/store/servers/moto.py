"""moto's S3 server: an emulator in Python, fast enough for every run of the tests.

It looks whether a key is free and then writes, without a lock: of 200 races of 32 writers on a busy
machine, one had two winners. So its requests are served one at a time here; what a server does
with many at once is for Ceph's to show.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.store.servers.endpoint import S3Server

KEYS_OF_A_PAGE = 5
"""So few that a listing of more than a handful takes several requests."""

SERVE = """
import sys, threading
from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

moto, turn = DomainDispatcherApplication(create_backend_app), threading.Lock()

def one_at_a_time(environ, start_response):
    with turn:
        return moto(environ, start_response)

server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True, request_handler=MotoRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("http://%s:%d" % server.server_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def started_moto() -> Iterator[S3Server]:
    """The server in a process of its own, with one empty bucket; it ends with this one, however that ends."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"MOTO_S3_DEFAULT_MAX_KEYS": str(KEYS_OF_A_PAGE)},
        text=True,
    ) as process:
        try:
            server = S3Server(process.stdout.readline().strip())
            server.make_bucket()
            yield server
        finally:
            process.kill()
