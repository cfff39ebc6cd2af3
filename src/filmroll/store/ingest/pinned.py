"""Connections that go to the very address that was checked, everything about them against one deadline.

A name is looked up once for each connection and its addresses are checked; the socket is opened to one of those, by
number. So no second answer of a name server can lead anywhere else. Certificates are compared with the name.
"""

from __future__ import annotations

import queue
import socket
import ssl
import threading
import time
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

import httpcore

from filmroll.errors import ImageSourceError

_UNICAST = IPv6Network("2000::/3")
"""All of IPv6 that is routed between networks. What wraps an IPv4 address lies outside, but for 6to4 and Teredo."""

_INNER = (
    IPv4Network("192.0.0.0/24"),
    IPv4Network("192.88.99.0/24"),
    IPv4Network("168.63.129.16/32"),
)
"""Special to the network one is in, though not all of them are private by the book: protocol assignments (in one
cloud the metadata service), the relay of 6to4, and another cloud's own address in each of its networks."""

Answer = list[tuple[Any, ...]] | OSError | ValueError


class Deadline:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds, more than none; ImageSourceError if none are left."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.missed()
        return left

    def missed(self) -> ImageSourceError:
        return ImageSourceError(
            f"the image's server did not send it within {self._seconds:g} seconds",
            remedy="Try again, or raise max_seconds",
        )


def is_public(address: str) -> bool:
    """Whether an address is one and the same host from everywhere, and nobody's inner one."""
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        return ip in _UNICAST and ip.is_global and ip.sixtofour is None and ip.teredo is None
    return _is_public_v4(ip)


class PinnedBackend(httpcore.NetworkBackend):
    """How httpcore reaches the network: to public addresses only, unless `private` is allowed."""

    def __init__(self, deadline: Deadline, *, private: bool) -> None:
        self._deadline = deadline
        self._private = private

    def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.NetworkStream:
        addresses = _look_up(host, port, self._deadline)
        if not self._private and not all(map(is_public, addresses)):
            raise _unreachable(f"{host} is {', '.join(addresses)}")
        return _Stream(self._connect(addresses, port), self._deadline)

    def _connect(self, addresses: list[str], port: int) -> httpcore.NetworkStream:
        failures: list[str] = []
        for place, address in enumerate(addresses):
            # One that does not answer leaves time for the others.
            patience = self._deadline.left() / (len(addresses) - place)
            try:
                return httpcore.SyncBackend().connect_tcp(address, port, timeout=patience)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failures.append(f"{address}: {error}")
        self._deadline.left()
        raise httpcore.ConnectError("; ".join(failures))


class _Stream(httpcore.NetworkStream):
    """A stream on which no operation waits longer than until the deadline, however little each one brings.

    httpcore passes a timeout to each; that is a stream's own, begun again with every byte.
    """

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, *_: Any, **__: Any) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left())

    def write(self, buffer: bytes, *_: Any, **__: Any) -> None:
        self._stream.write(buffer, self._deadline.left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, *_: Any, **__: Any
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, self._deadline.left()), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _look_up(host: str, port: int, deadline: Deadline) -> list[str]:
    """A name's addresses. Nobody can interrupt the system's look-up: it is left to a thread of its own."""
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except (OSError, ValueError) as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True, name="filmroll-look-up").start()
    try:
        answer = answers.get(timeout=deadline.left())
    except queue.Empty:
        raise deadline.missed() from None
    if isinstance(answer, Exception):
        raise _unreachable(f"{host}: {answer}")
    return [str(place[0]) for _, _, _, _, place in answer]


def _unreachable(private: str) -> ImageSourceError:
    """The same whether a name is unknown or is one of our own network's: a stranger learns nothing of those."""
    return ImageSourceError(
        "the image's server has no public address", remedy="Pass the bytes, or a URL that is public", private=private
    )


def _is_public_v4(ip: IPv4Address) -> bool:
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _INNER)
