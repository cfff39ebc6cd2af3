"""The processes of a run as the orchestrator speaks to them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import psutil

from filmroll.errors import RunError
from filmroll.rollout.worker import Played, RolloutTask
from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.engines import Engines
from filmroll.run.launch import Process, role_command
from filmroll.run.roles import Nothing, codec
from filmroll.run.switchboard import Connect
from filmroll.train.step import Ask, Progress, Publish, Restored, StepReport, Take, TrainStep
from filmroll.wire.channel import Caller
from filmroll.wire.transport import Sender, open_sender

T = TypeVar("T")


class Crew:
    """Engines, a trainer and a worker, all alive."""

    def __init__(self, config: Config, engines: Engines, trainer: Process, worker: Process) -> None:
        self._config = config
        self._engines, self._trainer, self._worker = engines, trainer, worker
        self._to_trainer: Caller
        self._to_worker: Caller
        self._samples: Sender[TrainStep] | None = None

    async def connect(self) -> None:
        """Wait until all of them can be spoken to, and introduce them."""
        places = await asyncio.gather(self._trainer.endpoint(), self._worker.endpoint())
        self._to_trainer, self._to_worker = map(Caller, places)
        await self._engines.open(self._introduce)

    async def _introduce(self, engines: Connect) -> None:
        await self._worker.watch(self._to_worker.call("connect", engines, Nothing))

    async def rollout(self, task: RolloutTask) -> Played:
        return await self._ask_worker("rollout", task, Played)

    async def demonstrate(self, task: RolloutTask) -> Played:
        return await self._ask_worker("demonstrate", task, Played)

    @property
    def samples(self) -> Sender[TrainStep]:
        """The stream of samples to the trainer, one message a step; there is one once the trainer is restored."""
        if self._samples is None:
            raise RunError("samples were to be sent before the trainer was restored")
        return self._samples

    async def step(self, work: TrainStep) -> StepReport:
        """Send a step's samples and have the trainer learn from them."""
        return await self.take(await self._trainer.watch(self.samples.send(work)))

    async def take(self, number: int) -> StepReport:
        """Have the trainer learn from samples that are in the stream."""
        return await self._ask_trainer("step", Take(number), StepReport)

    async def save(self, progress: Progress) -> None:
        await self._ask_trainer("save", progress, Ask)

    async def restore(self) -> Progress:
        restored = await self._ask_trainer("restore", Ask(), Restored)
        stream = open_sender(restored.samples, codec(self._config), self._config.transport.window)
        self._samples = await self._trainer.watch(stream)
        return restored.progress

    async def publish(self, version: int) -> None:
        """The trainer's weights reach the engines, under this version."""
        await self._ask_trainer("publish", Publish(version), Ask)
        await self._engines.watch(self._engines.update(version))

    @property
    def engine_restarts(self) -> int:
        """How many engines have been started again."""
        return self._engines.restarts

    def memory(self) -> dict[str, int]:
        """Resident bytes of each process."""
        own = int(psutil.Process(os.getpid()).memory_info().rss)
        others = {process.name: process.memory() for process in (self._trainer, self._worker)}
        return {"orchestrator": own, **self._engines.memory(), **others}

    async def close(self) -> None:
        for caller in (self._to_trainer, self._to_worker):
            caller.close()
        if self._samples is not None:
            await self._samples.close()

    async def _ask_worker(self, name: str, message: Any, answer: type[T]) -> T:
        return await self._engines.watch(self._worker.watch(self._to_worker.call(name, message, answer)))

    async def _ask_trainer(self, name: str, message: Any, answer: type[T]) -> T:
        return await self._trainer.watch(self._to_trainer.call(name, message, answer))


@asynccontextmanager
async def crew(run: RunDirectory) -> AsyncIterator[Crew]:
    """The run's processes, started together and ended together."""
    async with AsyncExitStack() as stack:
        config = run.config()
        engines = Engines(run, config)
        stack.push_async_callback(engines.stop)
        await engines.start()
        processes = []
        for role in ("trainer", "worker"):
            process = await Process.start(role, role_command(role, run, role), run)
            stack.push_async_callback(process.stop)
            processes.append(process)
        hands = Crew(config, engines, *processes)
        await hands.connect()
        stack.push_async_callback(hands.close)
        yield hands
