"""The server that tests start ends with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.run.test_child import gone
from tests.run.test_train import wait_until
from tests.vllm.environment import ROOT

pytestmark = pytest.mark.vllm
STARTS = """
import sys
from pathlib import Path
from tests.vllm.serving import serving
model, folder = map(Path, sys.argv[1:])
with serving(model, folder, folder / "vllm.log", None):
    pass
"""


def test_a_server_does_not_outlive_tests_that_are_killed(tiny_model: Path, tmp_path: Path) -> None:
    """Long before it serves: so nothing but its own start is waited for."""
    starter = subprocess.Popen([sys.executable, "-c", STARTS, str(tiny_model), str(tmp_path)], cwd=ROOT)
    try:
        family = psutil.Process(starter.pid)
        wait_until(lambda: any("vllm" in one.cmdline()[1:2][0] for one in family.children() if one.cmdline()[1:2]))
        (server,) = family.children()
    finally:
        starter.kill()
        starter.wait()
    assert gone(server.pid)
