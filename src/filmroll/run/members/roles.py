"""What each process of a run does: the engine, the trainer, and the worker that plays episodes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from filmroll.environments import make_environment
from filmroll.errors import RunError
from filmroll.families import Family, load_family
from filmroll.materialize import Materializer
from filmroll.materialize.carried import Carried
from filmroll.render import load_renderer
from filmroll.rollout.worker import RolloutTask, Worker
from filmroll.run.config import TINY, Config
from filmroll.run.directory import RunDirectory
from filmroll.run.engine_config import EmbeddedEngineConfig
from filmroll.run.members.meeting import meeting
from filmroll.run.members.switchboard import Connect, Switchboard
from filmroll.run.network import own_address
from filmroll.run.processes.child import race
from filmroll.run.processes.launch import announce, end_with_starter, role_command
from filmroll.run.processes.torchrun import heads_node, is_rank, saying_what_failed, start_ranks
from filmroll.train.step import TrainStep
from filmroll.wire.channel import Listener
from filmroll.wire.transport import Codec, open_receiver

if TYPE_CHECKING:
    from filmroll.train.learning.reference import Reference
    from filmroll.train.process.team import Team

MiB = 1 << 20


class Nothing(msgspec.Struct, frozen=True):
    """A message or an answer that says nothing but that it came."""


def run_engine(run: RunDirectory, name: str, seed: int) -> None:
    """Serve the run's model until the starter is gone."""
    from filmroll.engine.embedded.server import serve

    config = run.config()
    if not isinstance(config.engine, EmbeddedEngineConfig):
        raise RunError(f"this run's engines are of the kind {config.engine.kind}")
    end_with_starter()
    serve(
        model_dir(run, config),
        run.open_store(config),
        run.weights,
        name=model_name(config),
        host=own_address(config.cluster.network),
        on_ready=lambda url: announce(run, name, url),
        threads=config.engine.threads,
        max_batch=config.engine.max_batch,
        max_model_len=config.engine.max_model_len,
        cache_bytes=config.engine.cache_mb * MiB,
        device=config.engine.device,
        seed=seed,
    )


def run_worker(run: RunDirectory, name: str) -> None:
    """Play the episodes that the orchestrator asks for."""
    config = run.config()
    end_with_starter()
    asyncio.run(_serve_worker(run, name, config))


async def _serve_worker(run: RunDirectory, name: str, config: Config) -> None:
    longest = max(1, config.engine.max_model_len - config.sampling.max_tokens)
    renderer = load_renderer(
        model_dir(run, config),
        run.open_store(config),
        typed=config.render.typed,
        max_tokens=longest,
        options=config.render.options,
    )
    environment = make_environment(config.environment)
    switchboard = Switchboard(config.eval.served_name or model_name(config))
    worker = Worker(environment, renderer, switchboard)

    async def connect(message: Connect) -> Nothing:
        await switchboard.connect(message)
        return Nothing()

    listener = Listener(
        {
            "connect": (Connect, connect),
            "rollout": (RolloutTask, worker.rollout),
            "demonstrate": (RolloutTask, worker.demonstrate),
        },
        host=own_address(config.cluster.network),
    )
    announce(run, name, listener.endpoint)
    await listener.serve()


def run_trainer(run: RunDirectory, name: str, sign: int = 0) -> None:
    """Take the optimizer steps that the orchestrator asks for, in one process or in those that torchrun starts.

    On several machines, they know each other by the sign.
    """
    config = run.config()
    end_with_starter()
    if config.trainer.ranks > 1 and not is_rank():
        place = meeting(run, config, int(name.rpartition("-")[2]), sign) if config.trainer.nodes > 1 else None
        start_ranks(config.trainer.ranks, role_command("trainer", run, name)[1:], place)
        return
    saying_what_failed(lambda: _train(run, name, config))


def _train(run: RunDirectory, name: str, config: Config) -> None:
    from filmroll.train.learning.ranks import GRACE, Ranks
    from filmroll.train.learning.trainer import Trainer
    from filmroll.train.process.team import Team

    family = load_family(model_dir(run, config))
    trainer = Trainer(
        model_dir(run, config),
        Carried(family) if config.multimodal.mode == "processed" else materializer(run, config, family),
        config.trainer,
        config.loss,
        # A machine that was lost is not heard; one that has lost it says nothing until that is noticed.
        Ranks.join(config.trainer.device, GRACE + (config.cluster.silence_s if config.trainer.nodes > 1 else 0.0)),
        may_miss=config.multimodal.may_miss,
        reference=_reference(run, config, family),
    )
    team = Team(
        trainer,
        weights=run.weights,
        checkpoints=run.checkpoints,
        keep=config.run.keep_checkpoints,
        shard_bytes=config.trainer.shard_mb * MiB,
    )
    if trainer.ranks.leads:
        asyncio.run(_serve_trainer(run, name, config, team))
        return
    if heads_node():
        # Nobody speaks to it, but somebody waits until it is there.
        announce(run, name, f"rank {trainer.ranks.rank}")
    team.follow()


async def _serve_trainer(run: RunDirectory, name: str, config: Config, team: Team) -> None:
    from filmroll.train.process.service import TrainerService

    service = TrainerService(
        team,
        lambda begin: open_receiver(run.samples_place(config), codec(config), config.transport.window, begin=begin),
    )
    listener = Listener(service.handlers(), host=own_address(config.cluster.network))
    announce(run, name, listener.endpoint)
    ended = asyncio.create_task(service.ended())
    await race(listener.serve(), ended)
    raise RunError("the trainer's processes are out of step", remedy="What failed was told to whoever asked for it")


def _reference(run: RunDirectory, config: Config, family: Family) -> Reference | None:
    """The policy that the trained one is to stay close to, if it is to."""
    from filmroll.train.learning.reference import Reference

    if not config.loss.kl:
        return None
    if config.loss.reference:
        return Reference.named(Path(config.loss.reference), family, device=config.trainer.device)
    return Reference(model_dir(run, config), kept=run.reference, device=config.trainer.device)


def materializer(run: RunDirectory, config: Config, family: Family) -> Materializer:
    """What develops the images that are trained on: the trainer's, or in mode processed the orchestrator's."""
    return Materializer(run.open_store(config), family, cache_bytes=config.trainer.cache_mb * MiB)


def codec(config: Config) -> Codec[TrainStep]:
    """How a step's samples are written and read."""
    return Codec(TrainStep, tensors=config.multimodal.mode == "processed")


def model_dir(run: RunDirectory, config: Config) -> Path:
    """The model's folder; the orchestrator has built it where the configuration asks for a tiny one."""
    return run.model if config.model == TINY else Path(config.model)


def model_name(config: Config) -> str:
    """How the engine names the model."""
    return config.model if config.model == TINY else Path(config.model).name
