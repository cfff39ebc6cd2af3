"""The processes of a run as the orchestrator speaks to them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import psutil

from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.engines import Engines
from filmroll.run.gate import opened_gate
from filmroll.run.learner import Learner
from filmroll.run.member import Here, Member, Starter, engine_names
from filmroll.run.players import Players


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


def memory(engines: dict[str, int], *processes: Member) -> dict[str, int]:
    """Resident bytes of this process, the engines and others."""
    own = int(psutil.Process(os.getpid()).memory_info().rss)
    return {"orchestrator": own, **engines, **{process.name: process.memory() for process in processes}}


@asynccontextmanager
async def crew(run: RunDirectory, *, apart: bool = False) -> AsyncIterator[Crew]:
    """The run's processes, started and ended together; `apart`, those that come by themselves, sent away together."""
    async with AsyncExitStack() as stack:
        config = run.config()
        starter: Starter = Here(run, config)
        if apart:
            names = [*engine_names(config), "trainer", "worker"]
            starter = await stack.enter_async_context(opened_gate(run, config, names))
        engines = await started_engines(run, config, starter, stack)
        trainer = await started("trainer", starter, stack)
        players, learner = Players(engines, await started("worker", starter, stack)), Learner(config, trainer)
        await asyncio.gather(players.connect(), learner.connect())
        stack.push_async_callback(players.close)
        stack.push_async_callback(learner.close)
        yield Crew(players, learner)


@asynccontextmanager
async def learner_alone(run: RunDirectory) -> AsyncIterator[Learner]:
    """A run's trainer, where nothing is sampled."""
    async with AsyncExitStack() as stack:
        config = run.config()
        learner = Learner(config, await started("trainer", Here(run, config), stack))
        await learner.connect()
        stack.push_async_callback(learner.close)
        yield learner


async def started_engines(run: RunDirectory, config: Config, starter: Starter, stack: AsyncExitStack) -> Engines:
    """The run's engines, being started; they end with the stack."""
    engines = Engines(run, config, starter)
    stack.push_async_callback(engines.stop)
    await engines.start()
    return engines


async def started(role: str, starter: Starter, stack: AsyncExitStack) -> Member:
    """A process of this role, being started; it ends with the stack."""
    process = await starter.start(role, 0)
    stack.push_async_callback(process.stop)
    return process
