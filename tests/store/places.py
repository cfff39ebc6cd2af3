"""Where the stores of one test may be: a folder, a bucket of a server, a name in memory."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from tests.store.servers.endpoint import BUCKET, S3Server

SERVERS = ["moto", pytest.param("ceph", marks=pytest.mark.ceph)]
"""Fixtures that start a server which speaks S3."""


class Place:
    """New for each test, so that nothing is there yet."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request
        self.name = secrets.token_hex(8)

    @property
    def folder(self) -> Path:
        folder: Path = self._request.getfixturevalue("tmp_path")
        return folder / "store"

    def bucket(self, server: S3Server | str) -> str:
        """The URL of a prefix in the bucket of a server, or of the one that a fixture starts."""
        self.use(self._request.getfixturevalue(server) if isinstance(server, str) else server)
        return f"s3://{BUCKET}/{self.name}/images"

    def use(self, server: S3Server) -> None:
        """From now on this process's environment names that server, and nothing else of the kind."""
        monkeypatch: pytest.MonkeyPatch = self._request.getfixturevalue("monkeypatch")
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
