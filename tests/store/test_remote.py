"""Images from URLs, against real servers on loopback: in time, in bounds, and never from an address inside."""

from __future__ import annotations

import asyncio
import gzip
import pickle
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import httpcore
import httpx
import pytest

from filmroll.errors import ConfigError, FilmrollError, ImageFormatError, ImageLimitError, ImageSourceError
from filmroll.store import HttpSources, Limits, open_store
from filmroll.store.ingest import pinned, remote, sources
from filmroll.store.ingest.canonical import canonical
from tests.store.pictures import png_file, sample_files
from tests.store.web import Web, certificate, elsewhere, found, slowly, speak_tls, web

FILES = sample_files()
PNG = FILES["PNG"]
INSIDE = HttpSources(private_addresses=True, schemes=("http", "https"))
OUTSIDE = HttpSources(schemes=("http", "https"))
HURRIED = HttpSources(max_seconds=0.6, private_addresses=True, schemes=("http", "https"))
PATIENCE = 8
"""Seconds within which HURRIED is over on any machine; what it is tested with would take minutes."""


@pytest.fixture
def server() -> Iterator[Web]:
    with web() as one:
        yield one


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Where sockets were really connected to."""
    places: list[Any] = []

    class Spied(socket.socket):
        def connect(self, place: Any) -> None:
            places.append(place)
            super().connect(place)

    monkeypatch.setattr(socket, "socket", Spied)
    return places


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """Answers of a name server, by name: each is given once, then the next, then it knows of none."""
    answers: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def look_up(host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        if host not in answers:
            return real(host, port, *args, **kwargs)
        if not answers[host]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [found for address in answers[host].pop(0) for found in real(address, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return answers


def refused(url: str, http: HttpSources | None, kind: type[FilmrollError] = ImageSourceError, **limits: int) -> str:
    """The message to a client, which tells nothing of the network."""
    with pytest.raises(FilmrollError) as caught:
        canonical(url, Limits(**limits), http)
    assert type(caught.value) is kind, repr(caught.value)
    message = caught.value.wire()["message"]
    assert isinstance(message, str)
    for secret in ("127.", "localhost", "::1", "169.254", ".test", "0x", "a.png", "key"):
        assert secret not in message
    return message


# What is fetched


@pytest.mark.parametrize("format_", FILES)
def test_an_image_from_a_url_is_that_image(format_: str, server: Web) -> None:
    server.answers["/a.png"] = found(FILES[format_], "Content-Type: text/html")
    assert canonical(server.url(), http=INSIDE) == canonical(FILES[format_])


def test_nothing_is_fetched_unless_the_store_is_told_to(server: Web, tmp_path: Path) -> None:
    server.answers["/a.png"] = found(PNG)
    for scheme in ("http", "HTTPS"):
        with pytest.raises(ImageSourceError, match="HttpSources"):
            open_store(tmp_path).put(server.url(scheme=scheme))
    assert not server.connections
    ref = open_store(tmp_path, http=INSIDE).put(server.url())
    assert open_store(tmp_path).read(ref) == PNG


def test_a_store_that_fetches_travels_to_another_process(server: Web, tmp_path: Path) -> None:
    server.answers["/a.png"] = found(PNG)
    assert pickle.loads(pickle.dumps(open_store(tmp_path, http=INSIDE))).put(server.url()).nbytes == len(PNG)


@pytest.mark.parametrize(
    "rules",
    [{"max_seconds": 0}, {"max_seconds": float("inf")}, {"max_redirects": -1}, {"schemes": ()}, {"schemes": ("file",)}],
    ids=str,
)
def test_rules_that_are_none(rules: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        HttpSources(**rules)


def test_only_the_named_schemes_are_fetched(server: Web) -> None:
    server.answers["/a.png"] = found(PNG)
    assert "over http" in refused(server.url(), HttpSources(private_addresses=True))
    assert "over ftp" in refused(server.url(scheme="ftp"), INSIDE)
    assert not server.connections


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///a.png",
        "http://[",
        "http://exa\nmple/",
        "http://a..b/",
        f"http://{'a' * 64}.test/",
        "http://1.2.3.4.5/",
        "http://0177.0.0.1/",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:99999/",
        "http://\ud800/",
        "http://127.0.0.1/\ud800",
    ],
)
def test_urls_that_name_nothing(url: str) -> None:
    assert "seconds" not in refused(url, INSIDE)


def test_any_text_is_a_url_or_is_refused() -> None:
    """Given by somebody, or by a server that redirects."""
    random, base, places = Random(3), httpx.URL("https://h.test/a"), 0
    bits = ["http://", "https://", "ftp:", "//", "/", "\\", "a", "b.test", "127.1", "[", "]", "::1", "%", "%zz", "%0a"]
    bits += [":", ":80", ":99999", "@", "u:p@", "?", "#", ";", " ", "..", "\0", "xn--", "\u00df", "\ud800", "\u2100"]
    for _ in range(3_000):
        text = "".join(random.choices(bits, k=random.randrange(8)))
        for before in (None, base):
            with suppress(ImageSourceError):
                url = remote._url(text, before)
                remote._check(url, INSIDE)
                httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=remote._port(url), target=url.raw_path)
                assert remote._named(url).isascii()
                places += 1
    assert places > 1_000


def test_a_url_has_a_length(server: Web) -> None:
    refused(server.url("/" + "x" * 8_192), INSIDE)
    server.answers["/"] = elsewhere("/" + "x" * 8_193)
    refused(server.url("/"), INSIDE)
    assert len(server.seen) == 1


def test_a_request_carries_nothing_of_ours(server: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, password or cookie, whatever the environment and the server say."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password key\n")
    monkeypatch.setenv("NETRC", str(netrc))
    server.answers["/start"] = elsewhere("/a.png").replace(b"\r\n", b"\r\nSet-Cookie: a=b\r\n", 1)
    server.answers["/a.png"] = found(PNG)
    with web() as trap:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, trap.url(""))
        canonical(server.url("/start"), http=INSIDE)
        assert not trap.connections
    for head in server.seen:
        lines = head.split("\r\n")
        assert lines[0].startswith("GET /")
        assert {line.partition(":")[0] for line in lines[1:] if line} == {
            "Host", "Accept", "Accept-Encoding", "User-Agent", "Connection",
        }  # fmt: skip
        assert f"Host: {server.host}:{server.port}" in lines
        assert "Accept-Encoding: identity" in lines


def test_passwords_in_urls_are_refused(server: Web) -> None:
    assert "password" in refused(server.url(host="me:key@127.0.0.1"), INSIDE)
    server.answers["/start"] = elsewhere(server.url(host="me:key@127.0.0.1"))
    assert "password" in refused(server.url("/start"), INSIDE)
    assert len(server.seen) == 1


def test_a_signed_url_does_not_show_its_signature(server: Web) -> None:
    server.answers["/a.png?key=secret"] = found(b"", status="403 Forbidden")
    with pytest.raises(ImageSourceError) as caught:
        canonical(server.url("/a.png?key=secret"), http=INSIDE)
    assert "403" in caught.value.problem
    assert server.url() in str(caught.value)
    assert "secret" not in str(caught.value)


# Addresses

INNER = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0.0.0.0",  # noqa: S104
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "169.254.169.254",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "localhost",
    "[::]",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:8.8.8.8]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[2001:0:1::1]",
    "[fe80::1]",
    "[fec0::1]",
    "[fd00:ec2::254]",
    "[ff02::1]",
    "[2001:db8::1]",
]


@pytest.mark.parametrize("host", INNER)
def test_an_address_inside_is_refused_and_not_connected_to(host: str, connected: list[Any]) -> None:
    for scheme in ("http", "https"):
        assert "no public address" in refused(f"{scheme}://{host}/a.png", OUTSIDE)
    assert not connected


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.215.14", "172.32.0.1", "2606:4700::1111", "2a00:1450::1"])
def test_addresses_of_the_world_are_public(address: str) -> None:
    assert pinned.is_public(address)


def test_one_inner_address_among_public_ones_is_enough(names: dict[str, list[list[str]]], connected: list[Any]) -> None:
    names["both.test"] = [["8.8.8.8", "127.0.0.1"]]
    refused("http://both.test/", OUTSIDE)
    assert not connected


def test_a_name_is_told_from_an_unknown_one_by_nobody(names: dict[str, list[list[str]]]) -> None:
    names |= {"inner.test": [["10.0.0.7"]], "unknown.test": []}
    assert refused("http://inner.test/", OUTSIDE) == refused("http://unknown.test/", OUTSIDE)


def test_only_the_schemes_own_ports_are_public(connected: list[Any]) -> None:
    for url in ("http://8.8.8.8:22/", "https://8.8.8.8:80/", "http://8.8.8.8:443/", "http://8.8.8.8:8080/"):
        assert "port" in refused(url, OUTSIDE)
    assert not connected


def test_the_connection_goes_to_the_address_that_was_checked(
    server: Web, names: dict[str, list[list[str]]], connected: list[Any]
) -> None:
    """A name server that says something else the second time is not asked a second time."""
    server.answers["/a.png"] = found(PNG)
    names["image.test"] = [["127.0.0.1"]]
    canonical(server.url(host="image.test"), http=INSIDE)
    assert connected == [("127.0.0.1", server.port)]
    assert f"Host: image.test:{server.port}" in server.seen[0]


def test_every_address_of_a_name_is_tried(server: Web, names: dict[str, list[list[str]]]) -> None:
    server.answers["/a.png"] = found(PNG)
    names["image.test"] = [["::1", "127.0.0.2", "127.0.0.1"]]
    assert canonical(server.url(host="image.test"), http=INSIDE).data == PNG


def test_an_address_of_six() -> None:
    try:
        with web("::1") as server:
            server.answers["/a.png"] = found(PNG)
            assert canonical(server.url(), http=INSIDE).data == PNG
            assert f"Host: [::1]:{server.port}" in server.seen[0]
    except OSError:
        pytest.skip("this machine has no IPv6")


# Redirects


def test_redirects_are_followed_as_far_as_allowed(server: Web) -> None:
    server.answers |= {
        "/1": elsewhere("/2", 301),
        "/2": elsewhere("3", 303),
        "/3": elsewhere(f"//127.0.0.1:{server.port}/a.png", 308),
        "/a.png": found(PNG),
    }
    assert canonical(server.url("/1"), http=INSIDE).data == PNG
    two = HttpSources(max_redirects=2, private_addresses=True, schemes=("http",))
    assert canonical(server.url("/2"), http=two).data == PNG
    assert "more than 2 times" in refused(server.url("/1"), two)
    assert "/a.png" not in server.seen[-1]


def test_redirects_that_lead_nowhere(server: Web) -> None:
    server.answers["/"] = elsewhere("/")
    assert "more than 3 times" in refused(server.url("/"), INSIDE)
    assert len(server.seen) == 4
    server.answers["/nowhere"] = found(b"", status="302 Found")
    assert "nowhere" in refused(server.url("/nowhere"), INSIDE)


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/a.png", "data:image/png;base64,AAAA", "gopher://127.0.0.1", "http://["],
)
def test_a_redirect_leads_to_the_web_only(location: str, server: Web) -> None:
    server.answers["/"] = elsewhere(location)
    refused(server.url("/"), INSIDE)
    assert len(server.seen) == 1


def test_a_redirect_is_checked_as_the_first_url_was(server: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """One loopback address plays a public server that leads to another one, inside."""
    monkeypatch.setitem(sources.PORTS, "http", server.port)
    monkeypatch.setattr(pinned, "is_public", lambda address: address == "127.0.0.1")
    with web("127.0.0.2", server.port) as inner:
        inner.answers["/a.png"] = found(PNG)
        server.answers |= {"/a.png": found(PNG), "/in": elsewhere("http://127.0.0.2/a.png")}
        server.answers["/port"] = elsewhere("http://127.0.0.1:22/")
        assert canonical("http://127.0.0.1/a.png", http=OUTSIDE).data == PNG
        assert "no public address" in refused("http://127.0.0.1/in", OUTSIDE)
        assert "port" in refused("http://127.0.0.1/port", OUTSIDE)
        assert not inner.connections


# TLS


@pytest.fixture
def secure(
    server: Web, tmp_path: Path, names: dict[str, list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Web]:
    """A server with a certificate for image.test, which is trusted and has the server's address."""
    cert, key = certificate(tmp_path, "image.test")
    speak_tls(server, cert, key)
    server.answers["/a.png"] = found(PNG)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    names |= {name: [["127.0.0.1"]] for name in ("image.test", "other.test")}
    remote._roots.cache_clear()
    yield server
    remote._roots.cache_clear()


def test_a_certificate_is_asked_for_and_checked_by_name(secure: Web) -> None:
    assert canonical(secure.url(scheme="https", host="image.test"), http=INSIDE).data == PNG
    assert secure.names == ["image.test"]
    with pytest.raises(ImageSourceError, match=r"other\.test.*CERTIFICATE_VERIFY_FAILED"):
        canonical(secure.url(scheme="https", host="other.test"), http=INSIDE)
    refused(secure.url(scheme="https"), INSIDE)
    assert len(secure.seen) == 1


def test_a_certificate_of_nobody_is_refused(secure: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    remote._roots.cache_clear()
    refused(secure.url(scheme="https", host="image.test"), INSIDE)
    assert not secure.seen


def test_no_redirect_from_https_to_http(secure: Web) -> None:
    with web() as plain:
        plain.answers["/a.png"] = found(PNG)
        secure.answers["/"] = elsewhere(plain.url())
        assert "https to http" in refused(secure.url("/", scheme="https", host="image.test"), INSIDE)
        assert not plain.connections


def test_a_server_that_speaks_no_tls(server: Web) -> None:
    refused(server.url(scheme="https"), HURRIED)


# Time


def in_time(url: str) -> None:
    start = time.monotonic()
    assert "0.6 seconds" in refused(url, HURRIED)
    assert time.monotonic() - start < PATIENCE


def silent(server: Web) -> Callable[[socket.socket], None]:
    return lambda _: server.ended.wait(60) and None


@pytest.mark.parametrize("what", ["head", "body", "chunks", "interim", "nothing"])
def test_a_slow_server_is_not_waited_for(what: str, server: Web) -> None:
    start = b"HTTP/1.1 200 OK\r\n"
    server.answers["/a.png"] = {
        "head": slowly(server, b"X: y\r\n", start),
        "body": slowly(server, PNG, start + b"Content-Length: 1000000\r\n\r\n"),
        "chunks": slowly(server, b"1\r\nx\r\n", start + b"Transfer-Encoding: chunked\r\n\r\n"),
        "interim": slowly(server, b"HTTP/1.1 100 Continue\r\n\r\n", seconds=0.001),
        "nothing": silent(server),
    }[what]
    in_time(server.url())


def test_a_slow_handshake_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        in_time(f"https://127.0.0.1:{listener.getsockname()[1]}/")


def test_redirects_share_one_deadline(server: Web) -> None:
    def late(connection: socket.socket) -> None:
        time.sleep(0.4)
        connection.sendall(elsewhere("/"))

    server.answers["/"] = late
    in_time(server.url("/"))
    assert len(server.seen) <= 2


def test_a_slow_name_server_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [ended.wait(60)][:0])
    in_time("http://image.test/")
    ended.set()


def test_an_event_loop_stays_free_meanwhile(server: Web, tmp_path: Path) -> None:
    server.answers["/a.png"] = silent(server)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    async def fetch() -> None:
        ticking = asyncio.create_task(tick())
        with pytest.raises(ImageSourceError):
            await open_store(tmp_path, http=HURRIED).aput(server.url())
        ticking.cancel()

    asyncio.run(fetch())
    assert ticks >= 5


# Size


def test_what_is_announced_too_large_is_not_waited_for(server: Web) -> None:
    def promise(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
        server.ended.wait(60)

    server.answers["/a.png"] = promise
    start = time.monotonic()
    assert "5000 bytes" in refused(server.url(), INSIDE, ImageLimitError, max_bytes=4999)
    assert time.monotonic() - start < PATIENCE


@pytest.mark.parametrize("chunked", [False, True])
def test_what_does_not_end_is_left_at_the_limit(chunked: bool, server: Web) -> None:
    sent = 0

    def pour(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + (b"Transfer-Encoding: chunked\r\n" if chunked else b"") + b"\r\n")
        part = b"10000\r\n" + bytes(65536) + b"\r\n" if chunked else bytes(65536)
        while not server.ended.is_set():
            connection.sendall(part)
            sent += len(part)

    server.answers["/a.png"] = pour
    tracemalloc.start()
    refused(server.url(), INSIDE, ImageLimitError, max_bytes=1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 6 << 20
    tracemalloc.stop()
    assert sent < 1 << 26


def test_exactly_the_limit_is_taken(server: Web) -> None:
    server.answers["/a.png"] = found(PNG, length=False)
    assert canonical(server.url(), Limits(max_bytes=len(PNG)), INSIDE).data == PNG
    refused(server.url(), INSIDE, ImageLimitError, max_bytes=len(PNG) - 1)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "x-gzip", "gzip, gzip"])
def test_nothing_is_unpacked(encoding: str, server: Web) -> None:
    bomb = gzip.compress(png_file(1, 1, 8, 0, b"\0\0") + bytes(50_000_000))
    server.answers["/a.png"] = found(bomb, f"Content-Encoding: {encoding}")
    assert "compressed" in refused(server.url(), INSIDE)
    server.answers["/a.png"] = found(bomb)
    refused(server.url(), INSIDE, ImageFormatError)


def test_a_large_picture_in_few_bytes_is_refused_as_ever(server: Web) -> None:
    server.answers["/a.png"] = found(png_file(20_000, 20_000, 8, 2, bytes(100)))
    refused(server.url(), INSIDE, ImageLimitError)


# Servers that fail


@pytest.mark.parametrize("status", [201, 204, 206, 300, 304, 400, 401, 404, 418, 500, 503])
def test_only_200_is_an_image(status: int, server: Web) -> None:
    server.answers["/a.png"] = found(PNG if status not in (204, 304) else b"", status=f"{status} X")
    assert f"answered {status}" in refused(server.url(), INSIDE)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0" * 100,
        b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + PNG,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n" + PNG,
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + PNG,
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"<html>200 OK</html>\r\n\r\n",
    ],
    ids=lambda answer: repr(answer[:60]),
)
def test_broken_answers(answer: bytes, server: Web) -> None:
    server.answers["/a.png"] = answer
    refused(server.url(), INSIDE)


def test_half_an_answer_without_a_length_is_half_a_file(server: Web) -> None:
    server.answers["/a.png"] = found(PNG[:-20], length=False)
    refused(server.url(), INSIDE, ImageFormatError)


def test_nobody_listens(server: Web) -> None:
    server.end()
    refused(server.url(), INSIDE)


def test_a_connection_that_is_reset(server: Web) -> None:
    def reset(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    server.answers["/a.png"] = reset
    refused(server.url(), INSIDE)


def test_no_socket_stays_open(server: Web) -> None:
    def sockets() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    server.answers |= {"/a.png": found(PNG), "/404": found(b"", status="404 X"), "/302": elsewhere("/404")}
    canonical(server.url(), http=INSIDE)
    before = sockets()
    for _ in range(20):
        canonical(server.url(), http=INSIDE)
        refused(server.url("/302"), INSIDE)
        refused(server.url(), INSIDE, ImageLimitError, max_bytes=10)
    end = time.monotonic() + PATIENCE  # The server's side closes when it comes to it.
    while sockets() > before + 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert sockets() <= before + 2
