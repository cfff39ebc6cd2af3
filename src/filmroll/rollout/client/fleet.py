"""Several servers of one model: whose turn a conversation is, who is there, and with which weights."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence

from filmroll.errors import EngineUnavailableError, FilmrollError
from filmroll.rollout.client.server import Server
from filmroll.rollout.client.tries import Failed, Tries, growing

log = logging.getLogger(__name__)

UNTOLD = 0
"""The version of an engine that nobody ever gave weights to; weights may have been published under it all the same."""


class Fleet:
    """A server is used once it has said what it is, and has the weights that were published last.

    One that is lost is looked at again and again, by one task however many wait for it. It may have
    been started anew, so it is brought up to date before it is used.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = tuple(servers)
        self.version: int | None = None
        """What was published last; None while nobody said."""
        self._present: set[Server] = set()
        self._trouble: dict[Server, FilmrollError] = {}
        """What went wrong last with those that are not there."""
        self._searches: dict[Server, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    async def choose(self, session: str, failed: Collection[Server], tries: Tries) -> Server:
        """The first in the session's own order that is there, rather one that has not `failed` just now."""
        await self._look(tries)
        order = sorted(self.servers, key=lambda server: server.rank(session))
        while not self._present:
            if not self._searches or not await self._change(tries):
                raise self._trouble.get(order[0]) or EngineUnavailableError("the engine does not say what it is")
        there = [server for server in order if server in self._present]
        return next((server for server in there if server not in failed), there[0])

    def exhausted(self, failed: Collection[Server]) -> bool:
        """Whether no server is left that has not failed."""
        return self._present <= set(failed)

    def lost(self, server: Server) -> None:
        """Look for it until it is there again; nobody is sent to it meanwhile."""
        if server in self._present:
            log.warning("the engine at %s is lost", server.url)
        self._present.discard(server)
        self._begin(server)

    def expect(self, version: int) -> None:
        """Know that somebody else has given this version to the servers."""
        self.version = version
        for server in self._present:
            server.version = version

    async def publish(self, version: int, patience: float) -> None:
        """Give a version to all servers: at once to those that are there, to others before they are used again.

        What nobody takes because it is refused is not published. Those that refuse what others took are
        used no longer.
        """
        tries = Tries(patience)
        await self._look(tries)
        before, self.version = self.version, version
        for server in self._trouble.keys() - self._searches.keys():
            self._begin(server)
        asked = list(self._present)
        try:
            gives = (self._give(server, version, Tries(patience)) for server in asked)
            done = await asyncio.gather(*gives, return_exceptions=True)
            problems = {server: one for server, one in zip(asked, done, strict=True) if one is not None}
            refusals = {server: one for server, one in problems.items() if not isinstance(one, EngineUnavailableError)}
            if refusals and len(problems) == len(asked):
                self.version = before
            for server, refusal in refusals.items():
                if self.version == version and isinstance(refusal, FilmrollError):
                    self._set_aside(server, refusal)
            for refusal in refusals.values():
                raise refusal
        finally:
            for server in [one for one in self._present if one.version != self.version]:
                # It may have taken it or not.
                self.lost(server)
        while not any(server.version == version for server in self._present):
            if not self._searches or not await self._change(tries):
                raise next(iter(self._trouble.values()))

    async def close(self) -> None:
        searches = list(self._searches.values())
        for search in searches:
            search.cancel()
        await asyncio.gather(*searches, return_exceptions=True)
        await asyncio.gather(*(server.close() for server in self.servers))

    async def _look(self, tries: Tries) -> None:
        """Each server has been looked at once, or patience is over."""
        for server in self.servers:
            if self._unknown(server):
                self._begin(server)
        while any(map(self._unknown, self.servers)) and await self._change(tries):
            pass

    def _unknown(self, server: Server) -> bool:
        return server not in self._present and server not in self._trouble

    async def _give(self, server: Server, version: int, tries: Tries) -> None:
        """It has the version; else the error for which it has not. One that is gone gets it when it is back."""
        while server.version != version:
            try:
                await server.update_weights(version)
            except Failed as failed:
                if failed.gone:
                    self.lost(server)
                    raise failed.error from None
                tries.failed(failed)
                await tries.pause(failed.after)

    def _begin(self, server: Server) -> None:
        server.forget()
        if server not in self._searches:
            self._searches[server] = asyncio.create_task(self._search(server))

    async def _search(self, server: Server) -> None:
        try:
            for pause in growing():
                try:
                    await self._bring(server)
                except Failed as failed:
                    self._trouble[server] = failed.error
                    self._tell()
                    await asyncio.sleep(pause)
                except FilmrollError as error:
                    self._set_aside(server, error)
                    return
                else:
                    self._trouble.pop(server, None)
                    self._present.add(server)
                    return
        finally:
            del self._searches[server]
            self._tell()

    async def _bring(self, server: Server) -> None:
        """Know what it is, and have it serve what was published last."""
        await server.look()
        while self.version is not None and server.version != self.version:
            wanted = self.version
            if wanted != UNTOLD and await server.weights() == wanted:
                server.version = wanted
            else:
                await server.update_weights(wanted)

    def _set_aside(self, server: Server, error: FilmrollError) -> None:
        """Use it no longer: what it refuses it would refuse again."""
        log.warning("the engine at %s is set aside: %s", server.url, error)
        self._present.discard(server)
        self._trouble[server] = error

    async def _change(self, tries: Tries) -> bool:
        return await tries.wait(self._changed.wait())

    def _tell(self) -> None:
        """Wake all who wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()
