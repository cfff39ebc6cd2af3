"""What the orchestrator knows of a process of the run, and who starts one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Protocol, TypeVar

from filmroll.errors import FilmrollError
from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.members.claims import dealt_variables
from filmroll.run.members.engine_process import start_engine
from filmroll.run.members.names import role_of
from filmroll.run.processes.launch import Process, role_command

T = TypeVar("T")


class Member(Protocol):
    """An engine, a trainer or a worker, on this machine or another."""

    @property
    def name(self) -> str: ...

    @property
    def exited(self) -> asyncio.Future[int]:
        """Its status, once it is gone."""

    async def watch(self, work: Awaitable[T]) -> T:
        """The result of `work`, or what has been `lost` as soon as the process is gone."""

    def lost(self, circumstance: str = "") -> FilmrollError:
        """What to raise once it is gone: a RunError, or a DiskFullError, after which it is not started again."""

    def last_words(self) -> str:
        """What it last said, if anything."""

    async def endpoint(self) -> str:
        """Where it can be spoken to, once it can be."""

    def memory(self) -> int:
        """Resident bytes."""

    async def stop(self) -> None:
        """Return once it has ended."""


class Starter(Protocol):
    """Whoever starts the processes of a run."""

    async def start(self, name: str, seed: int) -> Member:
        """The process of that name, which may not be there yet.

        The seed is an engine's; or what the nodes of a trainer know each other by.
        """


class Here:
    """Starts them on this machine.

    The `names` are dealt its GPUs, in their order; who is not among them sees what this process sees.
    """

    def __init__(self, run: RunDirectory, config: Config, names: Sequence[str] = ()) -> None:
        self._run = run
        self._config = config
        self._variables = dealt_variables(config, names)

    async def start(self, name: str, seed: int) -> Process:
        role, variables = role_of(name), self._variables.get(name, {})
        if role == "engine":
            return await start_engine(name, self._run, self._config, seed, variables)
        command = [*role_command(role, self._run, name), "--seed", str(seed)]
        process = await Process.start(name, command, self._run, variables)
        if role == "trainer" and self._config.trainer.nodes > 1:
            # It may have to wait for another node before it can begin.
            process.patience += self._config.cluster.patience_s
        return process
