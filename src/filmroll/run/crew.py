"""The processes of a run as the orchestrator speaks to them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import psutil

from filmroll.errors import RunError
from filmroll.rollout.client import EngineClient
from filmroll.rollout.worker import Played, RolloutTask
from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.launch import Process
from filmroll.run.roles import Connect, Nothing, codec
from filmroll.train.step import Ask, Progress, Publish, Restored, StepReport, Take, TrainStep
from filmroll.wire.channel import Caller
from filmroll.wire.transport import Sender, open_sender

T = TypeVar("T")


class Crew:
    """An engine, a trainer and a worker, all alive."""

    def __init__(self, config: Config, engine: Process, trainer: Process, worker: Process) -> None:
        self._config = config
        self._engine, self._trainer, self._worker = engine, trainer, worker
        self._client: EngineClient
        self._to_trainer: Caller
        self._to_worker: Caller
        self._samples: Sender[TrainStep] | None = None

    async def connect(self) -> None:
        """Wait until all three can be spoken to, and introduce them."""
        urls = await asyncio.gather(*(process.endpoint() for process in (self._engine, self._trainer, self._worker)))
        self._client = EngineClient(urls[0])
        self._to_trainer, self._to_worker = Caller(urls[1]), Caller(urls[2])
        await self._ask_worker("connect", Connect(urls[0]), Nothing)

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
        """The trainer's weights reach the engine, under this version."""
        await self._ask_trainer("publish", Publish(version), Ask)
        await self._engine.watch(self._client.update_weights(version))

    def memory(self) -> dict[str, int]:
        """Resident bytes of each process."""
        parts = {process.name: process.memory() for process in (self._engine, self._trainer, self._worker)}
        return {"orchestrator": int(psutil.Process(os.getpid()).memory_info().rss), **parts}

    async def close(self) -> None:
        for caller in (self._to_trainer, self._to_worker):
            caller.close()
        if self._samples is not None:
            await self._samples.close()
        await self._client.close()

    async def _ask_worker(self, name: str, message: Any, answer: type[T]) -> T:
        return await self._engine.watch(self._worker.watch(self._to_worker.call(name, message, answer)))

    async def _ask_trainer(self, name: str, message: Any, answer: type[T]) -> T:
        return await self._trainer.watch(self._to_trainer.call(name, message, answer))


@asynccontextmanager
async def crew(run: RunDirectory) -> AsyncIterator[Crew]:
    """The run's processes, started together and ended together."""
    async with AsyncExitStack() as stack:
        processes = []
        for role in ("engine", "trainer", "worker"):
            process = await Process.start(role, role, run)
            stack.push_async_callback(process.stop)
            processes.append(process)
        hands = Crew(run.config(), *processes)
        await hands.connect()
        stack.push_async_callback(hands.close)
        yield hands
