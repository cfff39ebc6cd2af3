"""One process at a time leads a run: two would write over each other's weights and checkpoints."""

from __future__ import annotations

import fcntl
import os
import socket
import weakref
from contextlib import suppress

from filmroll.errors import ConfigError
from filmroll.run.directory import RunDirectory


def lead(run: RunDirectory, *, apart: bool = False) -> None:
    """Have this process lead the run for as long as `run` is kept; a ConfigError where another one does.

    Orchestrators of processes that are started apart take over from each other, and share it. The system lets go
    of it when the process ends, however that is. Where the file system knows no such locks, nothing is checked.
    """
    file = os.open(run.path / "lead", os.O_RDWR | os.O_CREAT, 0o644)
    weakref.finalize(run, os.close, file)
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if apart else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"{os.read(file, 200).decode(errors='replace') or 'another process'} is at work in {run.path}",
            remedy="Wait until it has ended, or end it",
        ) from None
    except OSError:
        return
    # For whoever is refused; on a full disk, without.
    with suppress(OSError):
        os.truncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} of {socket.gethostname()}".encode(), 0)
