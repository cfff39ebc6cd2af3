"""A process of a run that is started apart: it waits for the orchestrator, does what that wants, and ends with it."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from filmroll.errors import ConfigError, FilmrollError, RunError
from filmroll.run.cluster.gate import ORCHESTRATOR, PULSE_S, REPLACED_AFTER_S, Pulse, Wanted
from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.members.member import Here
from filmroll.run.processes.child import race
from filmroll.run.processes.ending import TELLING, ToldToEnd, end_at_once
from filmroll.run.processes.launch import Process, announced
from filmroll.wire.channel import Caller

_ANSWER_S = 5.0
_log = logging.getLogger(__name__)


def join(run: RunDirectory, config: Config, name: str) -> None:
    """Be that process of the run until its orchestrator ends, or SIGTERM or SIGINT says so.

    Where the orchestrator falls silent, our process is ended as well, and that is a RunError.
    """
    asyncio.run(_Guest(run, config, name).stay())


def there_will_be(path: Path, config: Config | None) -> RunDirectory:
    """The run in that folder, waited for if it has not begun; if a configuration is given, it must be the run's."""
    patience = (config or Config()).cluster.patience_s
    latest, waiting = time.monotonic() + patience, False
    while not (run := RunDirectory(path)).config_file.is_file() or run.came_to_nothing:
        if not waiting:
            _log.info("waiting up to %.0f s for the orchestrator to begin the run in %s", patience, path)
            waiting = True
        if time.monotonic() > latest:
            raise ConfigError(
                f"no run has begun in {path} within {patience:.0f} s",
                remedy="Start `filmroll orchestrator` with the same file, on a machine that shares this folder",
            )
        time.sleep(PULSE_S)
    return RunDirectory.open(path) if config is None else RunDirectory.same(path, config)


@dataclass(frozen=True, slots=True)
class _Running:
    """A process that was started because it is wanted."""

    number: int
    process: Process
    endpoint: asyncio.Task[str]

    async def stop(self) -> None:
        self.endpoint.cancel()
        await asyncio.gather(self.endpoint, return_exceptions=True)
        if not self.process.exited.done():
            await self.process.stop()


class _Guest:
    """Whoever comes to the gate under a process's name, and has that process beside it."""

    def __init__(self, run: RunDirectory, config: Config, name: str) -> None:
        self._run = run
        self._name = name
        self._here = Here(run, config)
        self._patience, self._silence = config.cluster.patience_s, config.cluster.silence_s
        self._session = secrets.token_hex(8)
        self._running: _Running | None = None
        self._caller: Caller | None = None
        self._why = "its orchestrator is not there any more"

    async def stay(self) -> None:
        told: asyncio.Future[ToldToEnd] = asyncio.get_running_loop().create_future()
        for sign in TELLING:
            asyncio.get_running_loop().add_signal_handler(sign, _tell, told, ToldToEnd(sign))
        try:
            led = await race(self._be_led(), told)
            if led.done():
                led.result()
            else:
                self._why = "it was told to end"
        except FilmrollError as error:
            self._why = str(error)
            raise
        finally:
            await self._go()
        if told.done():
            raise told.result()

    async def _be_led(self) -> None:
        _log.info("%s waits for the orchestrator of %s", self._name, self._run.path)
        caller = self._caller = await self._come()
        _log.info("%s has joined the run", self._name)
        while True:
            wanted = await self._ask(caller)
            if wanted.end:
                _log.info("the run has ended, and %s with it", self._name)
                self._why = "the run has ended"
                return
            await self._do(wanted)
            await asyncio.sleep(PULSE_S)

    async def _come(self) -> Caller:
        """Find the gate. What is announced may be an orchestrator's that is long gone, so only an answer counts."""
        began = time.monotonic()
        while True:
            endpoint = announced(self._run, ORCHESTRATOR)
            if endpoint is not None:
                caller = Caller(endpoint)
                try:
                    async with asyncio.timeout(_ANSWER_S):
                        await caller.call("pulse", self._pulse(), Wanted)
                    return caller
                except TimeoutError:
                    caller.close()
                except ConfigError:
                    # Perhaps another under this name was killed just now, and is not known to be gone.
                    caller.close()
                    if time.monotonic() > began + 3 * REPLACED_AFTER_S:
                        raise
            if time.monotonic() > began + self._patience:
                raise RunError(
                    f"no orchestrator of {self._run.path} has answered within {self._patience:.0f} s",
                    remedy="Start `filmroll orchestrator` with the same file, and let cluster.network name a network "
                    "that this machine reaches",
                )
            await asyncio.sleep(PULSE_S)

    async def _ask(self, caller: Caller) -> Wanted:
        try:
            async with asyncio.timeout(self._silence):
                return await caller.call("pulse", self._pulse(), Wanted)
        except TimeoutError:
            raise RunError(
                f"the orchestrator has not answered {self._name} for {self._silence:.0f} s",
                remedy=f"`filmroll orchestrator --run {self._run.path}` goes on; then start this process again, too",
            ) from None

    async def _do(self, wanted: Wanted) -> None:
        now = self._running
        if now is not None and now.number != wanted.number:
            await now.stop()
        if wanted.number and (now is None or now.number != wanted.number):
            process = await self._here.start(self._name, wanted.seed)
            _log.info("%s is started as process %d; log: %s", self._name, process.pid, process.log)
            self._running = _Running(wanted.number, process, asyncio.create_task(process.endpoint()))

    def _pulse(self) -> Pulse:
        about, now = Pulse(self._name, f"{socket.gethostname()}, process {os.getpid()}", self._session), self._running
        if now is None:
            return about
        about.number, about.memory = now.number, now.process.memory()
        if now.process.exited.done():
            about.status, about.words = now.process.exited.result(), now.process.last_words()
        elif now.endpoint.done() and now.endpoint.exception() is None:
            about.endpoint = now.endpoint.result()
        elif now.endpoint.done():
            about.status, about.words = -1, str(now.endpoint.exception())
        return about

    async def _go(self) -> None:
        """End our process, then say that we are gone, if somebody hears it."""
        if self._running is not None:
            await self._running.stop()
        if self._caller is not None:
            about = self._pulse()
            about.leaving = self._why
            try:
                async with asyncio.timeout(_ANSWER_S):
                    await self._caller.call("pulse", about, Wanted)
            except (TimeoutError, FilmrollError):
                _log.info("nobody heard that %s is gone", self._name)
            self._caller.close()


def _tell(told: asyncio.Future[ToldToEnd], why: ToldToEnd) -> None:
    """A first signal ends it in order, a second one at once."""
    if told.done():
        end_at_once(why)
    told.set_result(why)
