"""Where the nodes of a trainer meet: the first one says it in the run's folder, the others read it there."""

from __future__ import annotations

import time

from filmroll.errors import RunError
from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.network import own_address
from filmroll.run.processes.launch import announce, announced
from filmroll.run.processes.torchrun import Meeting, taken_port

_NAME = "trainer-meeting"
_LATER_S = 60.0
"""So much longer than the orchestrator a node waits for others: that one says who has not come."""
_POLL = 0.1


def meeting(run: RunDirectory, config: Config, node: int, sign: int) -> Meeting:
    """That of the nodes which were started under this sign; all but the first wait until it is known.

    The first has its port before it says it, so nobody else can take it meanwhile.
    """
    address = own_address(config.cluster.network)
    patience = config.cluster.patience_s + _LATER_S
    held = taken_port(address) if node == 0 else None
    if held is not None:
        announce(run, _NAME, f"{address}:{held.port}#{sign}")
    host, port = _announced(run, sign, patience)
    return Meeting(host, port, sign, node, config.trainer.nodes, address, patience, held)


def _announced(run: RunDirectory, sign: int, patience: float) -> tuple[str, int]:
    latest = time.monotonic() + patience
    while True:
        place, _, of = (announced(run, _NAME) or "").partition("#")
        if of == str(sign):
            host, _, port = place.rpartition(":")
            return host, int(port)
        if time.monotonic() > latest:
            raise RunError(
                f"the trainer's first node has not said within {patience:.0f} s where the others are to meet it",
                remedy="Its log says why; all nodes have to share the run's folder",
            )
        time.sleep(_POLL)
