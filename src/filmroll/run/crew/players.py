"""The engines and the worker of a run as whoever wants episodes played speaks to them.

A worker that dies is started again, and plays what it had begun from the beginning: what was asked of
it, it answers whole or not at all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, TypeVar

from filmroll.errors import FilmrollError, RunError
from filmroll.rollout.worker import Played, RolloutTask
from filmroll.run.config import Config
from filmroll.run.crew.engines import Engines
from filmroll.run.crew.learner import Start
from filmroll.run.crew.served import Served
from filmroll.run.directory import RunDirectory
from filmroll.run.members.member import Member
from filmroll.run.members.roles import Nothing
from filmroll.run.members.switchboard import Connect
from filmroll.run.processes.child import race
from filmroll.run.processes.lives import Lives
from filmroll.wire.channel import Caller

T = TypeVar("T")


class Players:
    """Engines and a worker, all alive or soon again."""

    def __init__(self, run: RunDirectory, config: Config, engines: Engines | Served, start: Start) -> None:
        self.engines = engines
        self.worker: Member
        self.restarts = 0
        """Of the worker; the engines count their own."""
        self._run = run
        self._start = start
        self._lives = Lives(config.run.restarts)
        self._caller: Caller | None = None
        self._there = asyncio.Event()
        self._known: Connect | None = None
        self._carer: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the worker; it is not waited for."""
        self.worker = await self._start()

    async def connect(self) -> None:
        """Wait until all of them can be spoken to, and introduce them."""
        await self._join()
        await self.engines.open(self._introduce)
        self._carer = asyncio.create_task(self._look_after())

    async def rollout(self, task: RolloutTask) -> Played:
        return await self._ask("rollout", task, Played)

    async def demonstrate(self, task: RolloutTask) -> Played:
        return await self._ask("demonstrate", task, Played)

    async def update(self, version: int) -> None:
        """From now on the engines sample with these weights."""
        await self.engines.watch(self.engines.update(version))

    async def stop(self) -> None:
        if self._carer is not None:
            self._carer.cancel()
            await asyncio.wait({self._carer})
        if self._caller is not None:
            self._caller.close()
        await self.worker.stop()

    async def _ask(self, name: str, message: Any, answer: type[T]) -> T:
        while True:
            await self._watch(self._there.wait())
            worker, caller = self.worker, self._caller
            if caller is None:
                raise RunError("the worker was spoken to before it was there")
            try:
                return await self._watch(worker.watch(caller.call(name, message, answer)))
            except FilmrollError:
                if not worker.exited.done() or (self._carer is not None and self._carer.done()):
                    raise
            if worker is self.worker:
                self._there.clear()

    async def _watch(self, work: Awaitable[T]) -> T:
        """The result of `work`, or an error as soon as the worker or an engine has died too often."""
        if self._carer is None:
            return await self.engines.watch(work)
        task = await race(self.engines.watch(work), self._carer)
        if not task.done():
            self._carer.result()
        return task.result()

    async def _look_after(self) -> None:
        """Start the worker again whenever it has ended, until that is too often."""
        while True:
            # Not awaited itself: whoever is cancelled would cancel it.
            await asyncio.wait({self.worker.exited})
            self._there.clear()
            began, lost = time.monotonic(), self.worker.lost()
            self._run.event("worker_died", error=f"{lost.problem}: {lost.private}")
            self._lives.spend(self.worker)
            if self._caller is not None:
                self._caller.close()
            with suppress(RunError):
                await self.start()
                await self._join()
                self.restarts += 1
                self._run.event("worker_restarted", seconds=time.monotonic() - began)

    async def _join(self) -> None:
        """Wait until the worker can be spoken to, and say to it which engines there are."""
        try:
            self._caller = Caller(await self.worker.endpoint())
            if self._known is not None:
                await self._tell(self._caller, self._known)
        except RunError:
            await self.worker.stop()
            raise
        self._there.set()

    async def _introduce(self, engines: Connect) -> None:
        self._known = engines
        if self._caller is None or not self._there.is_set():
            return
        try:
            await self._tell(self._caller, engines)
        except RunError:
            # One that has died is told when it comes again.
            if not self.worker.exited.done():
                raise

    async def _tell(self, caller: Caller, engines: Connect) -> None:
        await self.worker.watch(caller.call("connect", engines, Nothing))
