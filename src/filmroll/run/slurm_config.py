"""The `[slurm]` section of a configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Word = Annotated[str, Field(pattern=r"^[^\s'\"\\]*$")]
Line = Annotated[str, Field(pattern=r"^--[^\n]+$")]
Command = Annotated[str, Field(pattern=r"^[^\n]+$")]
Node = Annotated[int, Field(ge=0)]


class SlurmConfig(BaseModel):
    """The `[slurm]` section: what `filmroll slurm` asks for, and which process goes to which of the job's nodes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    partition: Word = ""
    """Partition; empty means the cluster's default."""
    account: Word = ""
    """Account that is charged; empty means the user's default."""
    time: Word = ""
    """Time limit as sbatch reads it, such as 24:00:00; empty means the partition's."""
    nodes: int = Field(default=1, ge=1)
    """Nodes of the job."""
    cpus_per_node: int = Field(default=0, ge=0)
    """CPUs on each node; 0 asks for whole nodes."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs on each node."""
    engine_nodes: tuple[Node, ...] = ()
    """Nodes that engines go to in turn; empty means all but the trainer's, or those where there are no others."""
    trainer_node: Node = 0
    """The trainer's first node: it has `trainer.nodes` from there on. The orchestrator is on the job's first, 0."""
    worker_node: Node = 0
    """The worker's node."""
    warn_s: int = Field(default=300, ge=0)
    """Seconds before the time limit at which the run is told to end at a checkpoint and the job to queue again."""
    lines: tuple[Line, ...] = ()
    """Further options of sbatch, such as --qos=high."""
    setup: tuple[Command, ...] = ()
    """Shell commands on the first node before anything starts, such as module load cuda."""
