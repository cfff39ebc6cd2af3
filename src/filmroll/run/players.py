"""The engines and the worker of a run as whoever wants episodes played speaks to them."""

from __future__ import annotations

from typing import Any, TypeVar

from filmroll.rollout.worker import Played, RolloutTask
from filmroll.run.engines import Engines
from filmroll.run.member import Member
from filmroll.run.roles import Nothing
from filmroll.run.switchboard import Connect
from filmroll.wire.channel import Caller

T = TypeVar("T")


class Players:
    """Engines and a worker, all alive."""

    def __init__(self, engines: Engines, worker: Member) -> None:
        self.engines = engines
        self.worker = worker
        self._caller: Caller

    async def connect(self) -> None:
        """Wait until all of them can be spoken to, and introduce them."""
        self._caller = Caller(await self.worker.endpoint())
        await self.engines.open(self._introduce)

    async def _introduce(self, engines: Connect) -> None:
        await self.worker.watch(self._caller.call("connect", engines, Nothing))

    async def rollout(self, task: RolloutTask) -> Played:
        return await self._ask("rollout", task, Played)

    async def demonstrate(self, task: RolloutTask) -> Played:
        return await self._ask("demonstrate", task, Played)

    async def update(self, version: int) -> None:
        """From now on the engines sample with these weights."""
        await self.engines.watch(self.engines.update(version))

    async def close(self) -> None:
        self._caller.close()

    async def _ask(self, name: str, message: Any, answer: type[T]) -> T:
        return await self.engines.watch(self.worker.watch(self._caller.call(name, message, answer)))
