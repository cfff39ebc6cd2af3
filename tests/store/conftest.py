"""What the tests of reliability have shown, as a table that docs/testing.md can take over."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable
from typing import TypeAlias

import pytest

from tests.store.effort import FULL

Show: TypeAlias = Callable[[str, str, str], None]


@pytest.fixture
def show(record_property: Callable[[str, object], None]) -> Show:
    """Adds a row to the table that `make reliability` ends with: property, what was tried, what was found."""
    return lambda *row: record_property("shown", row)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    ended = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    rows = sorted(
        (*value, f"{report.duration:.0f} s" + (", FAILED" if report.failed else ""))
        for report in ended
        if report.when == "call"
        for name, value in report.user_properties
        if name == "shown"
    )
    if not FULL or not rows:
        return
    where = f"Python {platform.python_version()}, Linux {platform.release()}"
    terminalreporter.section("reliability")
    terminalreporter.write_line(f"{datetime.datetime.now().astimezone():%Y-%m-%d}, {where}\n")
    for row in (("property", "tried", "found", "time"), ("---",) * 4, *rows):
        terminalreporter.write_line(f"| {' | '.join(row)} |")
