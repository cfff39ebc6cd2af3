"""Writers are killed at random moments of their work, and what they leave is whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.store.conftest import Show
from tests.store.effort import effort

pytestmark = pytest.mark.reliability

HOUSE = Path(__file__).parents[3]


def test_killed_writers_leave_nothing_torn_misnamed_or_lost(tmp_path: Path, show: Show) -> None:
    kills = effort(100, 10_000)
    command = [sys.executable, "-m", "tests.store.reliability.writers", str(tmp_path), str(kills)]
    done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, timeout=effort(250, 3500), check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout)
    assert counts["kills"] == kills
    # Most are hit while they put, and the others' work goes on.
    assert counts["killed_in_a_put"] > kills / 2
    assert counts["acknowledged"] > kills
    found = "0 torn, 0 misnamed, 0 acknowledged lost"
    show("atomic", found, kills=kills, of_them_in_a_put=counts["killed_in_a_put"], acknowledged=counts["acknowledged"])
