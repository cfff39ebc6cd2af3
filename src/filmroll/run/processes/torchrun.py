"""The ranks of a trainer, started by torchrun on this machine: they live and end together."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from filmroll.durable import FULL_STATUS
from filmroll.errors import DiskFullError, RunError
from filmroll.run.processes.child import leashed


def is_rank() -> bool:
    """Whether torchrun has started this process, ours or somebody's own."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def start_ranks(count: int, command: Sequence[str]) -> None:
    """Have torchrun start Python with this command so many times, and stay until they have ended.

    When one of them dies or fails the others are ended, and the error says which it was and why.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # gloo would look for the address of this host's name, which may have none.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
    # Each takes the threads that it is configured with.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    flags = [
        "--standalone", f"--nproc-per-node={count}", "--local-addr=127.0.0.1", "--max-restarts=0", "--no-python",
    ]  # fmt: skip
    try:
        # On a leash: no rank outlives torchrun, however that ends.
        run(parse_args([*flags, *leashed([sys.executable, *command])]))  # type: ignore[no-untyped-call]
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        kind = DiskFullError if failure.exitcode == FULL_STATUS else RunError
        raise kind(
            f"rank {rank} of {count} {_end(failure)}",
            remedy="The others were ended with it; more is above in this log",
        ) from None


def saying_what_failed(work: Callable[[], None]) -> None:
    """Do it, and leave what it raises where torchrun looks for it."""
    if not is_rank():
        work()
        return
    from torch.distributed.elastic.multiprocessing.errors import record

    record(work)()


def _end(failure: Any) -> str:
    if failure.exitcode < 0:
        return f"was ended by {signal.Signals(-failure.exitcode).name}"
    # A dictionary where `record` has written it, and a sentence of torch's where nothing was.
    message = failure.message["message"] if isinstance(failure.message, dict) else ""
    return f"failed: {message}" if message else f"ended with status {failure.exitcode}"


def _loopback() -> str:
    """What this system calls the interface of 127.0.0.1."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name in ("lo", "lo0")), names[0])
