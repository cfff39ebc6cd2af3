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
from filmroll.run.launch import Process, role_command
from filmroll.run.learner import Learner
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


def memory(engines: dict[str, int], *processes: Process) -> dict[str, int]:
    """Resident bytes of this process, the engines and others."""
    own = int(psutil.Process(os.getpid()).memory_info().rss)
    return {"orchestrator": own, **engines, **{process.name: process.memory() for process in processes}}


@asynccontextmanager
async def crew(run: RunDirectory) -> AsyncIterator[Crew]:
    """The run's processes, started together and ended together."""
    async with AsyncExitStack() as stack:
        config = run.config()
        engines = await started_engines(run, config, stack)
        trainer = await started("trainer", run, stack)
        players, learner = Players(engines, await started("worker", run, stack)), Learner(config, trainer)
        await asyncio.gather(players.connect(), learner.connect())
        stack.push_async_callback(players.close)
        stack.push_async_callback(learner.close)
        yield Crew(players, learner)


@asynccontextmanager
async def learner_alone(run: RunDirectory) -> AsyncIterator[Learner]:
    """A run's trainer, where nothing is sampled."""
    async with AsyncExitStack() as stack:
        learner = Learner(run.config(), await started("trainer", run, stack))
        await learner.connect()
        stack.push_async_callback(learner.close)
        yield learner


async def started_engines(run: RunDirectory, config: Config, stack: AsyncExitStack) -> Engines:
    """The run's engines, being started; they end with the stack."""
    engines = Engines(run, config)
    stack.push_async_callback(engines.stop)
    await engines.start()
    return engines


async def started(role: str, run: RunDirectory, stack: AsyncExitStack) -> Process:
    """A process of this role, being started; it ends with the stack."""
    process = await Process.start(role, role_command(role, run, role), run)
    stack.push_async_callback(process.stop)
    return process
