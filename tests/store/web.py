"""A web server on loopback that answers exactly what a test says, byte for byte and as slowly as it likes."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import pytest

Answer: TypeAlias = "bytes | Callable[[socket.socket], None]"


class Web:
    """`answers` by path; `seen` are the heads of the requests that came, `names` what TLS clients asked for."""

    def __init__(self, host: str, port: int) -> None:
        self.answers: dict[str, Answer] = {}
        self.seen: list[str] = []
        self.names: list[str | None] = []
        self.tls: ssl.SSLContext | None = None
        self.connections = 0
        self.ended = threading.Event()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family)
        self.host, self.port = (f"[{host}]" if ":" in host else host), self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, path: str = "/a.png", *, scheme: str = "http", host: str | None = None) -> str:
        return f"{scheme}://{host or self.host}:{self.port}{path}"

    def end(self) -> None:
        self.ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            if self.tls is None:
                self._answer(connection)
            else:
                with self.tls.wrap_socket(connection, server_side=True) as wrapped:
                    self._answer(wrapped)

    def _answer(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            part = connection.recv(4096)
            if not part:
                return
            head += part
        self.seen.append(head.decode())
        answer = self.answers[head.split()[1].decode()]
        if isinstance(answer, bytes):
            connection.sendall(answer)
        else:
            answer(connection)


@contextmanager
def web(host: str = "127.0.0.1", port: int = 0) -> Iterator[Web]:
    server = Web(host, port)
    try:
        yield server
    finally:
        server.end()


def found(body: bytes, *headers: str, status: str = "200 OK", length: bool = True) -> bytes:
    """A whole answer."""
    lines = [f"HTTP/1.1 {status}", *headers, *([f"Content-Length: {len(body)}"] if length else [])]
    return "\r\n".join([*lines, "", ""]).encode() + body


def elsewhere(location: str, status: int = 302) -> bytes:
    return found(b"moved", f"Location: {location}", status=f"{status} Found")


def slowly(web: Web, data: bytes, start: bytes = b"", seconds: float = 0.05) -> Callable[[socket.socket], None]:
    """`start` at once, then a byte at a time, for ever."""

    def drip(connection: socket.socket) -> None:
        connection.sendall(start)
        place = 0
        while not web.ended.wait(seconds):
            connection.sendall(data[place : place + 1])
            place = (place + 1) % len(data)

    return drip


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate of its own authority for a host's name, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the test's certificates, is not installed")
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-days", "2"]
    subprocess.run([*request, *names, "-out", cert, "-keyout", key], check=True, capture_output=True)
    return cert, key


def speak_tls(server: Web, cert: Path, key: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.sni_callback = lambda _, name, __: server.names.append(name)
    server.tls = context
