"""Engines that serve until they are told to end: no run, no restarts, and a clear word when one dies."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from filmroll.run.processes.child import Child, leashed
from filmroll.run.processes.ending import TELLING, ToldToEnd, end_at_once
from filmroll.run.processes.health import until_healthy

PATIENCE_S = 30.0
"""How long requests under way may take when all are told to end."""
LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Replica:
    """One server to start: how, with which variables beside the present ones, and where it will be."""

    number: int
    command: Sequence[str]
    url: str
    environment: Mapping[str, str] = field(default_factory=dict)


Ready = Callable[[Replica, int], None]
"""Told of a replica, and of its process id, once it answers."""
Say = Callable[[str], None]
"""Given what replicas print, line by line."""


async def serve(replicas: Sequence[Replica], ready: Ready, say: Say) -> None:
    """Serve until SIGTERM or SIGINT, which end all; a second one kills all. One that ends by itself is a RunError."""
    told = asyncio.Event()

    def tell(sign: int) -> None:
        if told.is_set():
            end_at_once(ToldToEnd(sign))
        told.set()

    for sign in TELLING:
        asyncio.get_running_loop().add_signal_handler(sign, tell, sign)
    served = [await _Served.start(replica, say) for replica in replicas]
    work = [asyncio.ensure_future(one) for one in (told.wait(), *(one.serve(ready) for one in served))]
    try:
        done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            one.result()
    finally:
        for one in work:
            one.cancel()
        await asyncio.gather(*(one.stop(PATIENCE_S) for one in served))


class _Served(Child):
    """A replica's process, whose lines are passed on and the last of which is remembered."""

    def __init__(
        self, replica: Replica, process: asyncio.subprocess.Process, output: asyncio.StreamReader, say: Say
    ) -> None:
        super().__init__(f"replica {replica.number}", process, lambda: self._last)
        self._replica = replica
        self._say = say
        self._last = ""
        self._listening = asyncio.create_task(self._listen(output))

    @classmethod
    async def start(cls, replica: Replica, say: Say) -> _Served:
        ours, theirs = os.pipe()
        with os.fdopen(theirs, "wb") as output:
            process = await asyncio.create_subprocess_exec(
                *leashed(replica.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **replica.environment},
                start_new_session=True,
            )
        return cls(replica, process, await _reader(ours), say)

    async def serve(self, ready: Ready) -> None:
        """Say when it is ready; a RunError when it has ended."""
        try:
            await self.watch(until_healthy(self._replica.url))
            ready(self._replica, self.pid)
            await asyncio.wait({self.exited})
        finally:
            if self.exited.done():
                await self._listening
        raise self.lost()

    async def _listen(self, output: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await output.readline()
            except ValueError:
                # Longer than a line may be: passed over.
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._last = text or self._last
            self._say(f"replica {self._replica.number} | {text}")


async def _reader(pipe: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb", buffering=0)
    )
    return reader
