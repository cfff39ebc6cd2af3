"""A proxy in front of a server that loses, cuts and delays what passes, as networks do."""

from __future__ import annotations

import re
import socket
import socketserver
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from typing import TypeAlias
from urllib.parse import urlsplit

from tests.store.servers.endpoint import S3Server


class Fault(Enum):
    """What may happen to a request and its answer."""

    REFUSE = "the connection is closed before anything is read"
    LOSE_REQUEST = "the server never sees it"
    CUT_REQUEST = "the server sees half of it"
    LOSE_ANSWER = "the server has done it, the client does not learn it"
    CUT_ANSWER = "the client sees half of the answer"
    STALL = "no answer comes, and the connection stays open"
    STALL_ANSWER = "half of the answer comes, and the connection stays open"


Plan: TypeAlias = Fault | int | None
"""A fault, a status that is answered in the server's place, or nothing unusual."""


class FaultyProxy(socketserver.ThreadingTCPServer):
    """Serves one request per connection. `plan` is for the next requests, `rest` for all that come after.

    `between` is called after each answer.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, behind: S3Server) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = (urlsplit(behind.url).hostname, urlsplit(behind.url).port)
        self.server = replace(behind, url=f"http://127.0.0.1:{self.server_address[1]}")
        self.over = threading.Event()
        self.plan: deque[Plan] = deque()
        self.rest: Plan = None
        self.between: Callable[[], object] = lambda: None
        self.seen: list[str] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    @contextmanager
    def counted(self, request_line: str) -> Iterator[Plan]:
        """What is to happen to a request that has begun."""
        with self._lock:
            self.seen.append(request_line)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            what = self.plan.popleft() if self.plan else self.rest
        try:
            yield what
        finally:
            with self._lock:
                self._at_once -= 1

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is nothing to speak of."""


class _Handler(socketserver.StreamRequestHandler):
    server: FaultyProxy

    def handle(self) -> None:
        head = b"".join(iter(self.rfile.readline, b"\r\n"))
        if not head:
            return
        line = head.partition(b"\r\n")[0].decode()
        with self.server.counted(line) as what:
            answer = b"" if what is Fault.REFUSE else self._answer(head, self.rfile.read(_length(head)), what)
        self.wfile.write(answer)
        self.server.between()
        if what in (Fault.STALL, Fault.STALL_ANSWER):
            self.server.over.wait(60)

    def _answer(self, head: bytes, body: bytes, what: Plan) -> bytes:
        """What the client gets to see."""
        if isinstance(what, int):
            return b"HTTP/1.1 %d Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % what
        if what in (Fault.LOSE_REQUEST, Fault.STALL):
            return b""
        if what is Fault.CUT_REQUEST:
            return self._forward(head, body[: len(body) // 2], answered=False)
        answer = self._forward(head, body)
        if what is None:
            return answer
        if what is Fault.LOSE_ANSWER:
            return b""
        above, end, below = answer.partition(b"\r\n\r\n")
        return above + end + below[: len(below) // 2] if below else above[: len(above) // 2]

    def _forward(self, head: bytes, body: bytes, *, answered: bool = True) -> bytes:
        with socket.create_connection(self.server.upstream, timeout=30) as upstream:
            first, _, rest = head.partition(b"\r\n")
            upstream.sendall(first + b"\r\nConnection: close\r\n" + rest + b"\r\n" + body)
            return b"".join(iter(lambda: upstream.recv(1 << 16), b"")) if answered else b""


def _length(head: bytes) -> int:
    found = re.search(rb"(?im)^content-length: *(\d+)", head)
    return int(found[1]) if found else 0


@contextmanager
def faulty(behind: S3Server) -> Iterator[FaultyProxy]:
    """A proxy that passes everything on until it is told otherwise."""
    with FaultyProxy(behind) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.over.set()
            proxy.shutdown()
