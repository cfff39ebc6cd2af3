"""The ranks of a trainer on this machine, started by torchrun: they live and end together.

Those of other machines are started by torchruns of their own, which meet at the first one's.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from filmroll.durable import FULL_STATUS
from filmroll.errors import DiskFullError, RunError
from filmroll.run.network import LOOPBACK, card_of
from filmroll.run.processes.child import leashed

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the ranks of several machines meet, and which of those machines this one is."""

    host: str
    port: int
    sign: int
    """What they know each other by, so that nobody comes to the meeting of another start."""
    node: int
    nodes: int
    address: str
    """This machine's own, by which the others reach it."""
    patience: float
    """Seconds in which all of them have to come."""
    held: TCPStore | None = None
    """On the first machine, what has the port until torchrun does."""


def taken_port(address: str) -> TCPStore:
    """A port of this machine, which is taken for as long as this is held.

    torchrun makes a store of the same kind, and in one process those at a port share it.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(address, 0, is_master=True, wait_for_workers=False, multi_tenant=True)


def is_rank() -> bool:
    """Whether torchrun has started this process, ours or somebody's own."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def heads_node() -> bool:
    """Whether it is the first rank of its machine."""
    return os.environ.get("LOCAL_RANK") == "0"


def start_ranks(count: int, command: Sequence[str], meeting: Meeting | None = None) -> None:
    """Have torchrun start Python with this command so many times, and stay until they have ended.

    With a meeting, so many are started on all machines together. When one of them dies or fails those
    beside it are ended, and the error says which it was and why.
    """
    import torch.distributed as dist
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # gloo would look for the address of this host's name, which may have none, or one that others do not reach.
    card = card_of(meeting.address if meeting else LOOPBACK)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", card)
    if meeting:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", card)
    # Each takes the threads that it is configured with.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    where = (
        _at(meeting, count) if meeting else ["--standalone", f"--nproc-per-node={count}", f"--local-addr={LOOPBACK}"]
    )
    try:
        # What ranks leave there for torchrun is read by the time it ends.
        with TemporaryDirectory() as notes:
            flags = [*where, "--max-restarts=0", "--no-python", f"--log-dir={notes}"]
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
    except dist.DistError as error:
        if meeting is None:
            raise
        raise RunError(
            f"node {meeting.node} of the trainer's {meeting.nodes} did not meet the others "
            f"at {meeting.host}:{meeting.port} within {meeting.patience:.0f} s",
            remedy="They have to reach each other in cluster.network, at any port",
            private=str(error),
        ) from error


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


def _at(meeting: Meeting, count: int) -> list[str]:
    return [
        f"--nnodes={meeting.nodes}",
        f"--node-rank={meeting.node}",
        f"--nproc-per-node={count // meeting.nodes}",
        f"--master-addr={meeting.host}",
        f"--master-port={meeting.port}",
        f"--rdzv-id={meeting.sign}",
        f"--rdzv-conf=timeout={meeting.patience:.0f}",
        f"--local-addr={meeting.address}",
    ]
