"""What the tests of reliability have shown, as a table that docs/testing.md can take over."""

from __future__ import annotations

import datetime
import platform
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.store.effort import FULL
from tests.store.servers.ceph import started_ceph
from tests.store.servers.endpoint import S3Server
from tests.store.servers.moto import started_moto


class Show:
    """Adds to the table that `make reliability` ends with: a property, what was found, how often was tried what.

    Counts of the same property and finding are added up.
    """

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    def __call__(self, law: str, found: str, **tried: int) -> None:
        self._record("shown", (law, found, tried))


@pytest.fixture
def show(record_property: Callable[[str, object], None]) -> Show:
    return Show(record_property)


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """An emulator of S3."""
    with started_moto() as server:
        yield server


@pytest.fixture(scope="session")
def ceph() -> Iterator[S3Server]:
    """A real S3 server; in a folder of its own because names of sockets must be short."""
    with TemporaryDirectory(prefix="ceph-") as folder, started_ceph(Path(folder)) as server:
        yield server


def pytest_terminal_summary(terminalreporter: Any) -> None:
    tried: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    for report in terminalreporter.getreports("passed"):
        for law, found, counts in (value for name, value in report.user_properties if name == "shown"):
            seconds[law, found] += report.duration
            for what, count in counts.items():
                tried[law, found][what] += count
    if not FULL or not tried:
        return
    terminalreporter.section("reliability")
    terminalreporter.write_line(
        f"{datetime.datetime.now().astimezone():%Y-%m-%d}, Python {platform.python_version()},"
        f" Linux {platform.release()}, {len(terminalreporter.getreports('failed'))} failures\n"
    )
    terminalreporter.write_line("| property | tried | found | seconds |")
    terminalreporter.write_line("|---|---|---|---|")
    for (law, found), counts in sorted(tried.items()):
        what = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
        terminalreporter.write_line(f"| {law} | {what} | {found} | {seconds[law, found]:.0f} |")
