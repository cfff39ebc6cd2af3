"""A run as a SLURM job: one script that starts the orchestrator and every other process as a step of its own.

The script knows its nodes only when it runs; what goes to which of them is decided here.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filmroll.errors import ConfigError, RunError
from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.members.claims import claim_of
from filmroll.run.members.names import engine_names, role_of, trainer_names
from filmroll.run.network import read_network
from filmroll.run.processes.gpus import Deck
from filmroll.run.processes.variables import launched_variables

SCRIPT = "job.sh"
"""The script's name in the run's folder."""
_TOO_FEW = (
    "See gpus_per_node, trainer_node and engine_nodes of slurm, trainer.ranks, engine.replicas and engine.gpus; "
    "run.share_gpus = true lets engines and trainer be on the same"
)
_BODY = (Path(__file__).parent / "slurm.sh").read_text()


@dataclass(frozen=True, slots=True)
class Step:
    """A process of the run, the node that it goes to, and the GPUs that it sees there, by number."""

    role: str
    name: str
    node: int
    gpus: Sequence[int]


def layout(config: Config, *, plays: bool = True) -> list[Step]:
    """Every process but the orchestrator. On each node a trainer has the first GPUs and engines the next ones.

    Where nothing is played, it is the trainer alone.
    """
    chosen = config.slurm
    decks = [
        Deck(range(chosen.gpus_per_node), f"node {node}", _TOO_FEW, shared=config.run.share_gpus)
        for node in range(chosen.nodes)
    ]

    def step(name: str, node: int) -> Step:
        if node >= chosen.nodes:
            raise ConfigError(
                f"{name} is to be on node {node}, but the job's nodes are 0 to {chosen.nodes - 1}",
                remedy="See slurm.nodes, trainer.nodes and the nodes of each role",
            )
        gpus = decks[node].deal(name, claim_of(name, config)) if chosen.gpus_per_node else None
        return Step(role_of(name), name, node, gpus or ())

    trained = config.trainer
    training = range(chosen.trainer_node, chosen.trainer_node + trained.nodes)
    steps = [step(name, node) for name, node in zip(trainer_names(config), training, strict=True)]
    if not plays:
        return steps
    others = tuple(node for node in range(chosen.nodes) if node not in training)
    places = chosen.engine_nodes or others or tuple(training)
    for number, name in enumerate(engine_names(config)):
        steps.append(step(name, places[number % len(places)]))
    return [*steps, step("worker", chosen.worker_node)]


def job_script(run: RunDirectory, config: Config) -> str:
    """The script that sbatch is given."""
    network = read_network(config.cluster.network)
    if config.slurm.nodes > 1 and network is not None and network.is_loopback:
        raise ConfigError(
            f"the job has {config.slurm.nodes} nodes, and cluster.network {config.cluster.network} does not join them",
            remedy='Set cluster.network to "hostname", or to the network of the nodes such as 10.0.0.0/16',
        )
    launched_variables(run, config)
    directives = "\n".join(f"#SBATCH {one}" for one in _directives(run, config))
    starts = "\n".join(_start(one, config) for one in layout(config, plays=run.command == "train"))
    parts = {
        "@DIRECTIVES@": directives,
        "@RUN@": shlex.quote(str(run.path)),
        "@FOLDER@": shlex.quote(str(Path.cwd())),
        "@PYTHON@": shlex.quote(sys.executable),
        "@SETUP@": "\n".join(config.slurm.setup) or ":",
        "@STEPS@": starts,
    }
    text = _BODY
    for name, value in parts.items():
        text = text.replace(name, value)
    return text


def write_job(run: RunDirectory, config: Config) -> Path:
    """Write the script into the run's folder."""
    script = run.path / SCRIPT
    script.write_text(job_script(run, config))
    script.chmod(0o755)
    return script


def submit(script: Path) -> str:
    """Hand the script to SLURM; returns the job's number."""
    try:
        done = subprocess.run(  # noqa: S603 - our own script
            ["sbatch", "--parsable", str(script)],  # noqa: S607 - SLURM's own, wherever it is installed
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise RunError("there is no sbatch on this machine", remedy=f"Submit {script} where there is one") from error
    if done.returncode:
        raise RunError(f"sbatch refused {script}: {done.stderr.strip()}", remedy="See the [slurm] section")
    return done.stdout.strip().partition(";")[0]


def _directives(run: RunDirectory, config: Config) -> list[str]:
    chosen = config.slurm
    log = str(run.logs / "slurm").replace("%", "%%")
    wanted = {
        "job-name": run.manifest_name(),
        "partition": chosen.partition,
        "account": chosen.account,
        "time": chosen.time,
        "nodes": str(chosen.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(chosen.cpus_per_node or ""),
        "gpus-per-node": str(chosen.gpus_per_node or ""),
        "signal": f"B:USR1@{chosen.warn_s}" if chosen.warn_s else "",
        "output": f'"{log}-%j.log"',
        "open-mode": "append",
    }
    whole = () if chosen.cpus_per_node else ("--exclusive",)
    return [*(f"--{name}={value}" for name, value in wanted.items() if value), *whole, "--requeue", *chosen.lines]


def _start(step: Step, config: Config) -> str:
    """The line that starts it. A dash means that GPUs are not spoken of, because nodes have none."""
    numbers = ",".join(map(str, step.gpus)) or "none" if config.slurm.gpus_per_node else "-"
    named = f" --name {step.name}" if step.role == "engine" or step.name != step.role else ""
    return f"step {step.name} {step.node} {numbers} {step.role}{named} &"
