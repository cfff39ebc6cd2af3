"""The engines of a run: as many as are configured, started again when one dies.

A worker is told of an engine once it can be asked and has the newest weights, and told at once when
it is gone. So a request never meets an engine that is older than the run.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from filmroll.errors import EngineUnavailableError, RunError
from filmroll.rollout.client import EngineClient
from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.members.member import Member, Starter
from filmroll.run.members.names import engine_names
from filmroll.run.members.switchboard import Connect
from filmroll.run.processes.child import race
from filmroll.run.processes.lives import Lives

T = TypeVar("T")

Tell = Callable[[Connect], Awaitable[None]]
"""Says which engines there are."""


@dataclass(frozen=True, slots=True)
class _Engine:
    """An engine that can be asked."""

    process: Member
    url: str
    client: EngineClient

    async def update(self, version: int) -> None:
        """Have it sample with these weights. If it cannot be asked any more, it is ended, if it is not yet."""
        try:
            await self.process.watch(self.client.update_weights(version))
        except (RunError, EngineUnavailableError):
            await self.process.stop()
            raise self.process.lost() from None


class Engines:
    """Started together, looked after one by one, ended together."""

    def __init__(self, run: RunDirectory, config: Config, starter: Starter) -> None:
        self.names = engine_names(config)
        self.restarts = 0
        self._run = run
        self._config = config
        self._starter = starter
        self._processes: dict[str, Member] = {}
        self._there: dict[str, _Engine] = {}
        self._version: int | None = None
        self._alone = asyncio.Lock()
        """Held while weights are loaded: an engine that joins has the newest, and each version reaches all."""
        self._starts = itertools.count()
        self._tell: Tell | None = None
        self._carers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start all of them; none is waited for."""
        for name in self.names:
            await self._start(name)

    async def open(self, tell: Tell) -> None:
        """Wait until all can be asked, have `tell` say so, now and whenever it changes, and look after them."""
        await asyncio.gather(*map(self._join, self.names))
        self._tell = tell
        await self._say()
        self._carers = [asyncio.create_task(self._look_after(name)) for name in self.names]

    async def watch(self, work: Awaitable[T]) -> T:
        """The result of `work`, or an error as soon as an engine has died too often."""
        task = await race(work, *self._carers)
        if not task.done():
            next(carer for carer in self._carers if carer.done()).result()
        return task.result()

    async def update(self, version: int) -> None:
        """All of them sample with these weights, and so will those that come later."""
        async with self._alone:
            self._version = version
            updates = [engine.update(version) for engine in self._there.values()]
            for failed in await asyncio.gather(*updates, return_exceptions=True):
                # One that was lost comes again, with this version.
                if isinstance(failed, BaseException) and not isinstance(failed, RunError):
                    raise failed

    def memory(self) -> dict[str, int]:
        """Resident bytes of each."""
        return {name: process.memory() for name, process in self._processes.items()}

    async def stop(self) -> None:
        for carer in self._carers:
            carer.cancel()
        await asyncio.gather(*(process.stop() for process in self._processes.values()))
        await asyncio.gather(*(engine.client.close() for engine in self._there.values()))

    async def _look_after(self, name: str) -> None:
        """Start an engine again whenever it has ended, until that is too often."""
        lives = Lives(self._config.engine.restarts)
        while True:
            # Not awaited itself: whoever is cancelled would cancel it.
            await asyncio.wait({self._processes[name].exited})
            lost = self._processes[name].lost()
            self._run.event("engine_died", engine=name, error=f"{lost.problem}: {lost.private}")
            await self._leave(name)
            now = time.monotonic()
            lives.spend(self._processes[name])
            with suppress(RunError):
                await self._start(name)
                await self._join(name)
                self.restarts += 1
                seconds = time.monotonic() - now
                self._run.event("engine_restarted", engine=name, version=self._version, seconds=seconds)

    async def _start(self, name: str) -> None:
        self._processes[name] = await self._starter.start(name, self._config.seed + next(self._starts))

    async def _join(self, name: str) -> None:
        """Wait until it can be asked, bring it to the newest weights, and let it be asked."""
        process = self._processes[name]
        try:
            url = await process.endpoint()
        except RunError:
            await process.stop()
            raise
        engine = _Engine(process, url, EngineClient(url))
        async with self._alone:
            if self._version is not None:
                await engine.update(self._version)
            self._there[name] = engine
            await self._say()

    async def _leave(self, name: str) -> None:
        engine = self._there.pop(name, None)
        if engine is not None:
            await self._say()
            await engine.client.close()

    async def _say(self) -> None:
        if self._tell is not None:
            urls = [self._there[name].url for name in self.names if name in self._there]
            await self._tell(Connect(urls, len(self.names) - len(urls)))
