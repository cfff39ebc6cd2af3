"""Images from http(s) URLs, for a store that is configured for them, within limits of time, bytes and redirects.

httpcore is spoken to directly: proxies, netrc, cookies, redirects and decompression need not be switched off, because
it has none. The bytes are judged by their content like any other's; what the server calls them does not matter.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import httpcore
import httpx

from filmroll.errors import ImageSourceError
from filmroll.store.formats.base import Limits
from filmroll.store.ingest.http_sources import PORTS, HttpSources
from filmroll.store.ingest.pinned import Deadline, PinnedBackend

_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_URL = 8192
_HEADERS = (
    (b"Accept", b"image/*"),
    (b"Accept-Encoding", b"identity"),
    (b"User-Agent", b"filmroll"),
    (b"Connection", b"close"),
)


def fetch_url(text: str, limits: Limits, rules: HttpSources) -> bytes:
    """What a GET of the URL brings, if the server answers 200 and keeps to the limits; else an ImageError."""
    deadline = Deadline(rules.max_seconds)
    url = _url(text)
    for _ in range(rules.max_redirects + 1):
        _check(url, rules)
        with _answer(url, deadline, private=rules.private_addresses) as answer:
            if answer.status not in _REDIRECTS:
                return _body(url, answer, limits)
            url = _next(url, answer)
    raise ImageSourceError(
        f"the image's server redirects more than {rules.max_redirects} times",
        remedy="Name the URL that the image has in the end",
        private=_named(url),
    )


def _url(text: str, base: httpx.URL | None = None) -> httpx.URL:
    if len(text) > _MAX_URL:
        raise ImageSourceError(f"the image's URL is longer than {_MAX_URL} characters")
    try:
        return httpx.URL(text) if base is None else base.join(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise ImageSourceError("the image's URL cannot be read", private=f"{text[:200]}: {error}") from None


def _check(url: httpx.URL, rules: HttpSources) -> None:
    """Before anything is looked up or connected to, for the first URL and for every one that it leads to."""
    if url.scheme not in rules.schemes:
        raise ImageSourceError(
            f"images are not fetched over {url.scheme[:16]}",
            remedy=f"Of URLs, those of {' and '.join(rules.schemes)} are fetched",
        )
    if url.userinfo:
        raise ImageSourceError("the image's URL holds a user name or password", remedy="Fetch it yourself")
    # httpx gives no port where it is the scheme's own.
    if url.port is not None and not rules.private_addresses:
        raise ImageSourceError(
            f"images are not fetched from port {url.port}", remedy="Ports 80 and 443 are the public ones"
        )


@contextmanager
def _answer(url: httpx.URL, deadline: Deadline, *, private: bool) -> Iterator[httpcore.Response]:
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=_port(url), target=url.raw_path)
    headers = [(b"Host", url.netloc), *_HEADERS]
    backend = PinnedBackend(deadline, private=private)
    roots = _roots() if url.scheme == "https" else None
    try:
        with (
            httpcore.ConnectionPool(ssl_context=roots, max_connections=1, network_backend=backend) as pool,
            pool.stream("GET", target, headers=headers) as answer,
        ):
            yield answer
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
        deadline.left()
        raise ImageSourceError(
            "the image cannot be fetched from its server",
            remedy="Try again, or pass the bytes",
            private=f"{_named(url)}: {type(error).__name__}: {error}"[:400],
        ) from None


def _next(url: httpx.URL, answer: httpcore.Response) -> httpx.URL:
    location = _header(answer, b"location")
    if location is None:
        raise ImageSourceError("the image's server redirects to nowhere", private=_named(url))
    target = _url(location, url)
    if url.scheme == "https" and target.scheme == "http":
        raise ImageSourceError("the image's server redirects from https to http", private=_named(url))
    return target


def _body(url: httpx.URL, answer: httpcore.Response, limits: Limits) -> bytes:
    if answer.status != 200:
        raise ImageSourceError(f"the image's server answered {answer.status}", private=_named(url))
    encoding = _header(answer, b"content-encoding") or "identity"
    if encoding.lower() != "identity":
        # Unpacking could make of a few bytes very many.
        raise ImageSourceError("the image's server sent it compressed, unasked", private=f"{_named(url)}: {encoding}")
    limits.check_bytes(int(_header(answer, b"content-length") or 0))
    data = bytearray()
    for part in answer.iter_stream():
        data += part
        limits.check_bytes(len(data))
    return bytes(data)


def _header(answer: httpcore.Response, name: bytes) -> str | None:
    for key, value in answer.headers:
        if key.lower() == name:
            return value.decode("utf-8", "replace")
    return None


def _port(url: httpx.URL) -> int:
    return PORTS[url.scheme] if url.port is None else url.port


def _named(url: httpx.URL) -> str:
    """Without the query, which may hold a signature that opens the door."""
    place = url.netloc + url.raw_path.partition(b"?")[0]
    return f"{url.scheme}://{place.decode('ascii')}"[:200]


@functools.cache
def _roots() -> ssl.SSLContext:
    """The certificates that are trusted, read once: certifi's, or those of SSL_CERT_FILE or SSL_CERT_DIR."""
    return httpx.create_ssl_context()
