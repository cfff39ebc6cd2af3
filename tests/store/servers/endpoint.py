"""Where an S3 server answers, and how a client of the tests comes to know it."""

from __future__ import annotations

import socket
import urllib.request
from dataclasses import dataclass
from datetime import timedelta

import obstore
from obstore.store import S3Store

BUCKET = "filmroll-tests"
"""Made on every server as it starts."""


@dataclass(frozen=True)
class S3Server:
    """A server on loopback, with the one pair of keys that it knows."""

    url: str
    key: str = "filmroll"
    secret: str = "no-secret"  # noqa: S105 - of a server that only this test can reach

    @property
    def environment(self) -> dict[str, str]:
        """What a process must find in its environment to use this server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
        }

    def make_bucket(self, name: str = BUCKET) -> None:
        """obstore makes no buckets, but signs the request that does."""
        client = S3Store(
            name,
            endpoint=self.url,
            access_key_id=self.key,
            secret_access_key=self.secret,
            region="us-east-1",
            client_options={"allow_http": True},
        )
        url = obstore.sign(client, "PUT", "", timedelta(minutes=1))
        with urllib.request.urlopen(urllib.request.Request(url, data=b"", method="PUT"), timeout=60):  # noqa: S310
            pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
