"""The engines as a worker asks them: those that are there now, and for a request whose engine was lost, the next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from filmroll.errors import EngineUnavailableError
from filmroll.render import Rendered
from filmroll.rollout.client import Completion, EngineClient
from filmroll.run.processes.child import race
from filmroll.wire.generate import SamplingParams

NOTICE_S = 60.0
"""How long it may take until it is known that an engine which does not answer is gone."""


class Connect(msgspec.Struct, frozen=True):
    """Which engines a worker is to use, and how many are missing: those are being started."""

    engines: list[str]
    missing: int = 0


class _Line:
    """A client, and how many requests use it. `gone` is done once all of its engines are."""

    def __init__(self, connect: Connect, model: str) -> None:
        self.engines = frozenset(connect.engines)
        self.client = EngineClient(connect.engines, model)
        self.calls = 0
        self.closing = False
        self.gone = asyncio.get_running_loop().create_future()

    async def hang_up(self, engines: Sequence[str]) -> None:
        """Close it once its last request has ended. Where none of its engines is among these, no request waits."""
        self.closing = True
        if not self.engines.intersection(engines):
            self.gone.set_result(None)
        if not self.calls:
            await self.client.close()


class Switchboard:
    """Asks engines that come and go. A request is retried only after it has got no answer, so none counts twice."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._line: _Line | None = None
        self._missing = 0
        self._changed = asyncio.Event()

    async def connect(self, now: Connect) -> None:
        """From now on these engines are asked; requests that are under way go on where they are."""
        before, self._line = self._line, _Line(now, self._model) if now.engines else None
        self._missing = now.missing
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if before is not None:
            await before.hang_up(now.engines)

    async def generate(
        self, prompt: Rendered, sampling: SamplingParams, *, request_id: str, session: str | None = None
    ) -> Completion:
        """One completion; as long as engines are being started, it is waited for."""
        while True:
            line, changed = self._line, self._changed
            if line is None:
                await changed.wait()
                continue
            try:
                asked = await race(self._ask(line, prompt, sampling, request_id, session), line.gone)
                if asked.done():
                    return asked.result()
            except EngineUnavailableError:
                if not self._missing and not changed.is_set():
                    with suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), NOTICE_S)
                if not self._missing and not changed.is_set():
                    raise
                await changed.wait()

    async def _ask(
        self, line: _Line, prompt: Rendered, sampling: SamplingParams, request_id: str, session: str | None
    ) -> Completion:
        line.calls += 1
        try:
            return await line.client.generate(prompt, sampling, request_id=request_id, session=session)
        finally:
            line.calls -= 1
            if line.closing and not line.calls:
                await line.client.close()
