"""A trainer over several machines: a process on each, which live and end together."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

from filmroll.errors import FilmrollError
from filmroll.run.config import Config
from filmroll.run.members.member import Member, Starter
from filmroll.run.members.names import trainer_names
from filmroll.run.processes.child import Watched


async def start_trainer(starter: Starter, config: Config) -> Member:
    """The run's trainer, on however many machines."""
    names = trainer_names(config)
    sign = secrets.randbits(31)
    members = [await starter.start(name, sign) for name in names]
    return members[0] if len(members) == 1 else TrainerNodes(members)


class TrainerNodes(Watched):
    """They are one member of the run: where one is lost, the others are ended, and the trainer with them.

    The first speaks for all.
    """

    def __init__(self, nodes: Sequence[Member]) -> None:
        self._nodes = nodes
        self._first_lost = nodes[0]
        super().__init__("trainer", asyncio.create_task(self._end()))

    async def _end(self) -> int:
        await asyncio.wait({node.exited for node in self._nodes}, return_when=asyncio.FIRST_COMPLETED)
        self._first_lost = next(node for node in self._nodes if node.exited.done())
        await self._stop_all()
        return self._first_lost.exited.result()

    async def endpoint(self) -> str:
        """The first one's; all of them have to be there."""
        waiting = [asyncio.ensure_future(node.endpoint()) for node in self._nodes]
        try:
            return (await asyncio.gather(*waiting))[0]
        except FilmrollError:
            if any(node.exited.done() for node in self._nodes):
                await asyncio.shield(self.exited)
                raise self.lost() from None
            raise
        finally:
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def lost(self, circumstance: str = "") -> FilmrollError:
        return self._first_lost.lost(circumstance)

    def last_words(self) -> str:
        return self._first_lost.last_words()

    def memory(self) -> int:
        return sum(node.memory() for node in self._nodes)

    async def stop(self) -> None:
        await self._stop_all()
        await self.exited

    async def _stop_all(self) -> None:
        await asyncio.gather(*(node.stop() for node in self._nodes))
