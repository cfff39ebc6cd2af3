"""Ceph's radosgw: a real S3 server, from Debian's packages, in a folder of its own and on loopback alone.

`python -m tests.store.servers.ceph` sees that it is installed; the tests start it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.store.servers.endpoint import S3Server, free_port

PACKAGES = ("ceph-mon", "ceph-osd", "radosgw", "ceph-common")
PROGRAMS = ("monmaptool", "ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin")
SECONDS_TO_START = 120


def install() -> None:
    """Install what is missing where that may be done, else say what to install."""
    if all(map(shutil.which, PROGRAMS)):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit(f"Ceph's gateway is not installed; on Debian: apt-get install {' '.join(PACKAGES)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        subprocess.run(["apt-get", "-qq", *command], env=environment, check=True)


@contextmanager
def started_ceph(folder: Path) -> Iterator[S3Server]:
    """The gateway and the cluster behind it, with one empty bucket; nothing of it outlives this process."""
    monitor, gateway = free_port(), free_port()
    server = S3Server(f"http://127.0.0.1:{gateway}")
    cluster = _Cluster(folder, monitor, gateway)
    with ExitStack() as running:
        address = f"[v2:127.0.0.1:{monitor}/0]"
        cluster.run("monmaptool", "--create", "--fsid", cluster.fsid, "--addv", "a", address, "map")
        cluster.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", "map")
        running.enter_context(cluster.started("ceph-mon", "-i", "a"))
        cluster.run("ceph", "osd", "create")
        cluster.run("ceph-osd", "--mkfs", "-i", "0")
        running.enter_context(cluster.started("ceph-osd", "-i", "0"))
        user = ("--uid", "tests", "--display-name", "tests", "--access-key", server.key, "--secret-key", server.secret)
        cluster.run("radosgw-admin", "-n", "client.rgw", "user", "create", *user)
        running.enter_context(cluster.started("radosgw", "-n", "client.rgw"))
        _wait_for(server)
        server.make_bucket()
        yield server


class _Cluster:
    """Ceph's programs, run with one configuration that keeps them to one folder."""

    def __init__(self, folder: Path, monitor: int, gateway: int) -> None:
        text = (Path(__file__).parent / "ceph.conf.in").read_text()
        for name, value in (("FOLDER", folder), ("MONITOR", monitor), ("GATEWAY", gateway)):
            text = text.replace(f"@{name}@", str(value))
        self.fsid = text.partition("fsid = ")[2].split()[0]
        (folder / "ceph.conf").write_text(text)
        for inner in ("monitor", "storage", "gateway"):
            (folder / inner).mkdir()
        self._folder = folder
        self._environment = os.environ | {"CEPH_CONF": str(folder / "ceph.conf")}

    def run(self, *command: str) -> None:
        """To its end; if it fails, the error says what it has said."""
        done = subprocess.run(
            command, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=SECONDS_TO_START
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[:2])} failed: {done.stderr[-2000:]}")

    @contextmanager
    def started(self, *command: str) -> Iterator[None]:
        """In the foreground, killed at the end, or by the kernel as soon as this process is gone."""
        with (self._folder / f"{command[0]}.out").open("wb") as out:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command, "-f"],
                cwd=self._folder,
                env=self._environment,
                stdout=out,
                stderr=out,
            )
        try:
            yield
        finally:
            process.kill()
            process.wait()


def _wait_for(server: S3Server) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            urllib.request.urlopen(server.url, timeout=10).close()  # noqa: S310
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    install()
