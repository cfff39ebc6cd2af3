"""What `filmroll` says to somebody, without a process of its own, whose start would take far longer than what it does.

For what ends before a run begins. That the command line is started as one starts it is tested by whole runs.
"""

from __future__ import annotations

import io
import signal
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from filmroll.cli import main
from filmroll.run.processes.ending import TELLING


def filmroll_here(*arguments: object, cwd: Path | None = None) -> CompletedProcess[str]:
    """An exception that would end the command in a traceback is raised."""
    words = ["filmroll", *map(str, arguments)]
    output, complaint, status = io.StringIO(), io.StringIO(), 0
    heard = {sign: signal.getsignal(sign) for sign in (*TELLING, signal.SIGUSR1)}
    with (
        pytest.MonkeyPatch.context() as patch,
        chdir(cwd or Path.cwd()),
        redirect_stdout(output),
        redirect_stderr(complaint),
    ):
        patch.setattr(sys, "argv", words)
        try:
            main()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        finally:
            for sign, handler in heard.items():
                signal.signal(sign, handler)
    return CompletedProcess(words, status, output.getvalue(), complaint.getvalue())
