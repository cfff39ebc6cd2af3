"""The GPUs that each process of a run needs, and those of this machine that it gets."""

from __future__ import annotations

import os
from collections.abc import Sequence

from filmroll.run.config import Config
from filmroll.run.engine_config import VllmEngineConfig
from filmroll.run.members.names import role_of
from filmroll.run.processes.gpus import SEEN, Claim, gpu_variables

_TOO_FEW = (
    f"See trainer.ranks, engine.replicas, engine.gpus and the devices; {SEEN} says which are seen, "
    "and run.share_gpus = true lets engines and trainer be on the same"
)


def claim_of(name: str, config: Config) -> Claim:
    """The GPUs that a process of the run needs."""
    role, trained, engine = role_of(name), config.trainer, config.engine
    if role == "trainer":
        return Claim.of(trained.device, trained.ranks // trained.nodes)
    if role != "engine":
        return Claim()
    if isinstance(engine, VllmEngineConfig):
        return Claim(engine.gpus, does_without=True)
    return Claim.of(engine.device)


def dealt_variables(config: Config, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """What shows each of these processes its GPUs on this machine; an error where there are too few."""
    claims = {name: claim_of(name, config) for name in names}
    return gpu_variables(claims, _TOO_FEW, {**os.environ, **config.run.env_vars}, shared=config.run.share_gpus)
