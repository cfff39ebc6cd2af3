"""The processes of a run as the orchestrator speaks to them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import psutil

from filmroll.run.cluster.gate import opened_gate
from filmroll.run.config import Config
from filmroll.run.crew.engines import Engines
from filmroll.run.crew.learner import Learner
from filmroll.run.crew.players import Players
from filmroll.run.crew.served import Served
from filmroll.run.directory import RunDirectory
from filmroll.run.members.member import Here, Member, Starter
from filmroll.run.members.names import engine_names, trainer_names
from filmroll.run.members.trainer_nodes import start_trainer


class Crew:
    """Engines, a worker and a trainer, all alive: those who play, and the one who learns."""

    def __init__(self, players: Players, learner: Learner) -> None:
        self.players = players
        self.learner = learner

    async def publish(self, version: int) -> None:
        """The trainer's weights reach the engines, under this version."""
        await self.learner.publish(version)
        await self.players.update(version)

    def memory(self) -> dict[str, int]:
        """Resident bytes of each process."""
        return memory(self.players.engines.memory(), self.learner.process, self.players.worker)


class Restarts:
    """How many processes were started again since they were counted last."""

    def __init__(self) -> None:
        self._engines = self._others = 0

    def since(self, crew: Crew) -> dict[str, int]:
        engines, others = crew.players.engines.restarts, crew.players.restarts + crew.learner.restarts
        new = {"engine_restarts": engines - self._engines, "restarts": others - self._others}
        self._engines, self._others = engines, others
        return new


def memory(engines: dict[str, int], *processes: Member) -> dict[str, int]:
    """Resident bytes of this process, the engines and others."""
    own = int(psutil.Process(os.getpid()).memory_info().rss)
    return {"orchestrator": own, **engines, **{process.name: process.memory() for process in processes}}


@asynccontextmanager
async def crew(run: RunDirectory, *, apart: bool = False) -> AsyncIterator[Crew]:
    """The run's processes, started and ended together; `apart`, those that come by themselves, sent away together."""
    async with AsyncExitStack() as stack:
        config = run.config()
        names = [*trainer_names(config), *engine_names(config), "worker"]
        starter = await _starter(run, config, names, stack, apart=apart)
        engines = await started_engines(run, config, stack, starter)
        learner = await started_learner(run, config, stack, starter)
        players = await started_players(run, config, engines, stack, starter)
        await asyncio.gather(players.connect(), learner.connect())
        yield Crew(players, learner)


@asynccontextmanager
async def learner_alone(run: RunDirectory, *, apart: bool = False) -> AsyncIterator[Learner]:
    """A run's trainer, where nothing is sampled; `apart`, it comes by itself."""
    async with AsyncExitStack() as stack:
        config = run.config()
        starter = await _starter(run, config, trainer_names(config), stack, apart=apart)
        learner = await started_learner(run, config, stack, starter)
        await learner.connect()
        yield learner


async def _starter(
    run: RunDirectory, config: Config, names: Sequence[str], stack: AsyncExitStack, *, apart: bool
) -> Starter:
    """Who starts these processes: this machine, or a gate for those that come by themselves."""
    if not apart:
        return Here(run, config, names)
    return await stack.enter_async_context(opened_gate(run, config, names))


async def started_engines(run: RunDirectory, config: Config, stack: AsyncExitStack, starter: Starter) -> Engines:
    """The run's engines, being started; they end with the stack."""
    engines = Engines(run, config, starter)
    stack.push_async_callback(engines.stop)
    await engines.start()
    return engines


async def started_players(
    run: RunDirectory, config: Config, engines: Engines | Served, stack: AsyncExitStack, starter: Starter
) -> Players:
    """Those engines and a worker, which is being started; it ends with the stack."""
    players = Players(run, config, engines, lambda: starter.start("worker", 0))
    await players.start()
    stack.push_async_callback(players.stop)
    return players


async def started_learner(run: RunDirectory, config: Config, stack: AsyncExitStack, starter: Starter) -> Learner:
    """The run's trainer, being started; it ends with the stack."""
    learner = Learner(run, config, lambda: start_trainer(starter, config))
    await learner.start()
    stack.push_async_callback(learner.stop)
    return learner
