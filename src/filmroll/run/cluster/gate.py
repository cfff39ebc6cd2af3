"""Processes that were started apart, on this machine or others, as the orchestrator has them.

Each comes to the gate by itself and says again and again how it is; the answer says what is wanted of
it. So either side notices when the other falls silent, and whatever is lost on the way is said again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import msgspec

from filmroll.errors import ConfigError, FilmrollError, RunError
from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.members.names import role_of
from filmroll.run.network import own_address
from filmroll.run.processes.child import Watched
from filmroll.run.processes.launch import announce, announced, withdraw
from filmroll.wire.channel import Listener

ORCHESTRATOR = "orchestrator"
"""The name under which the gate is announced."""
PULSE_S = 0.5
"""Seconds between two things that a process says."""
REPLACED_AFTER_S = 5.0
"""After so long without a word, somebody else may come under the same name."""
FAREWELL_S = 20.0
"""How long those who have come are given to end their processes."""
_LOST = -1
_log = logging.getLogger(__name__)


class Pulse(msgspec.Struct):
    """How a process is. `session` is drawn by whoever has come, `number` says which start it speaks of, 0 of none."""

    name: str
    host: str
    session: str
    number: int = 0
    endpoint: str = ""
    status: int | None = None
    words: str = ""
    memory: int = 0
    leaving: str = ""
    """Why it goes away, if it does."""


class Wanted(msgspec.Struct, frozen=True):
    """What is wanted of it: that start, none for 0; or that it goes away, because the run has ended."""

    number: int = 0
    seed: int = 0
    end: bool = False


class Remote(Watched):
    """A process that is wanted of whoever has come under its name, or will."""

    def __init__(self, name: str, number: int, seed: int, run: RunDirectory, patience: float) -> None:
        super().__init__(name, asyncio.get_running_loop().create_future())
        self.number = number
        self.wanted = Wanted(number, seed)
        self.there = asyncio.Event()
        self.ready = asyncio.Event()
        self.last = Pulse(name, "", "")
        named = f" --name {name}" if name != role_of(name) else ""
        self._call = f"filmroll {role_of(name)} --run {run.path}{named}"
        self._patience = patience

    async def endpoint(self) -> str:
        try:
            async with asyncio.timeout(self._patience):
                await self.watch(self.there.wait())
        except TimeoutError:
            raise RunError(
                f"process {self.name} has not come within {self._patience:.0f} s",
                remedy=f"`{self._call}` starts it, on a machine that shares the run's folder and reaches this one",
            ) from None
        await self.watch(self.ready.wait())
        return self.last.endpoint

    def hear(self, pulse: Pulse) -> None:
        """What is said of this start."""
        self.there.set()
        if pulse.number != self.number:
            return
        self.last = pulse
        if pulse.endpoint:
            self.ready.set()
        if pulse.status is not None:
            self.leave(f"on {pulse.host}: {pulse.words}", pulse.status)

    def leave(self, words: str, status: int = _LOST) -> None:
        """It is gone, or cannot be heard any more."""
        if not self.exited.done():
            self.last = Pulse(self.name, self.last.host, self.last.session, words=words)
            self.exited.set_result(status)

    def lost(self, circumstance: str = "") -> FilmrollError:
        if self.exited.result() != _LOST:
            return super().lost(circumstance)
        return RunError(f"process {self.name} is lost{circumstance}", private=self.last_words())

    def last_words(self) -> str:
        return self.last.words

    def memory(self) -> int:
        return self.last.memory

    async def stop(self) -> None:
        self.wanted = Wanted()
        if not self.there.is_set():
            self.leave("it never came")
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await asyncio.shield(self.exited)
        self.leave("it was asked to end, and did not say that it has")


class _Place:
    """One of the run's processes: who has come under its name, and what is wanted of it."""

    def __init__(self) -> None:
        self.pulse: Pulse | None = None
        self.heard = 0.0
        self.remote: Remote | None = None


class Gate:
    """Where they come in. What is wanted of a process is kept for the next that comes under its name."""

    def __init__(self, run: RunDirectory, config: Config, names: Sequence[str]) -> None:
        self._run = run
        self._patience = config.cluster.patience_s
        self._silence = config.cluster.silence_s
        self._places = {name: _Place() for name in names}
        self._numbers = itertools.count(1)
        self._ending = False
        self._empty = asyncio.Event()
        self._listener = Listener({"pulse": (Pulse, self._hear)}, host=own_address(config.cluster.network))
        announce(run, ORCHESTRATOR, self._listener.endpoint)

    async def start(self, name: str, seed: int) -> Remote:
        place = self._places[name]
        place.remote = Remote(name, next(self._numbers), seed, self._run, self._patience)
        if place.pulse is not None:
            place.remote.hear(place.pulse)
        return place.remote

    @property
    def missing(self) -> list[str]:
        """Who has not come yet."""
        return [name for name, place in self._places.items() if place.pulse is None]

    async def serve(self) -> None:
        """Hear whoever comes, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listener.serve())
            tasks.create_task(self._listen_for_silence())

    async def close(self) -> None:
        """Send away whoever has come, and wait until they have gone."""
        self._ending = True
        self._all_gone()
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await self._empty.wait()
        withdraw(self._run, ORCHESTRATOR, self._listener.endpoint)

    async def _hear(self, pulse: Pulse) -> Wanted:
        place = self._places.get(pulse.name)
        if place is None:
            raise ConfigError(
                f"this run has no process named {pulse.name[:64]!r}", remedy=f"It has {', '.join(self._places)}"
            )
        if place.pulse is not None and place.pulse.session != pulse.session:
            if time.monotonic() - place.heard < REPLACED_AFTER_S:
                raise ConfigError(
                    f"process {pulse.name} of this run is on {place.pulse.host} already",
                    remedy="End that one first, or choose another name",
                )
            self._leave(pulse.name, place, "another has come in its place")
        if pulse.leaving:
            self._leave(pulse.name, place, pulse.leaving)
            return Wanted(end=True)
        if place.pulse is None:
            _log.info("%s has come, from %s", pulse.name, pulse.host)
            self._run.event("joined", process=pulse.name, host=pulse.host)
        place.pulse, place.heard = pulse, time.monotonic()
        if self._ending:
            return Wanted(end=True)
        if place.remote is None or place.remote.exited.done():
            return Wanted()
        place.remote.hear(pulse)
        return place.remote.wanted

    async def _listen_for_silence(self) -> None:
        while True:
            await asyncio.sleep(PULSE_S)
            replaced = announced(self._run, ORCHESTRATOR) != self._listener.endpoint
            for name, place in self._places.items():
                if replaced:
                    self._leave(name, place, "another orchestrator has taken over the run")
                elif place.pulse is not None and time.monotonic() - place.heard > self._silence:
                    self._leave(name, place, f"it has not been heard for {self._silence:.0f} s")

    def _leave(self, name: str, place: _Place, why: str) -> None:
        if place.pulse is not None:
            _log.info("%s is gone from %s: %s", name, place.pulse.host, why)
            if not self._ending:
                self._run.event("left", process=name, host=place.pulse.host, why=why)
            place.pulse = None
            if place.remote is not None and place.remote.there.is_set():
                place.remote.leave(why)
            self._all_gone()

    def _all_gone(self) -> None:
        if all(place.pulse is None for place in self._places.values()):
            self._empty.set()


@asynccontextmanager
async def opened_gate(run: RunDirectory, config: Config, names: Sequence[str]) -> AsyncIterator[Gate]:
    """A gate that hears, until the end; then all who have come are sent away."""
    gate = Gate(run, config, names)
    serving = asyncio.create_task(gate.serve())
    try:
        if gate.missing:
            _log.info("waiting up to %.0f s each for %s", config.cluster.patience_s, ", ".join(gate.missing))
        yield gate
    finally:
        await gate.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
