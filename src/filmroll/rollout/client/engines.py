"""EngineClient: prompts in, sampled tokens with logprobs out, whatever the engine and however many servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from filmroll.errors import ConfigError, EngineUnavailableError, FilmrollError, UnknownReferenceError
from filmroll.render import Rendered
from filmroll.rollout.client.answers import Completion, completion
from filmroll.rollout.client.fleet import Fleet
from filmroll.rollout.client.requests import by_hashes, generate_request, references_of
from filmroll.rollout.client.server import Server
from filmroll.rollout.client.tries import Failed, Tries
from filmroll.wire.capabilities import Way
from filmroll.wire.generate import GenerateRequest, SamplingParams, encode, read_answer
from filmroll.wire.reference import digest_of

TIMEOUT_S = 600.0
PATIENCE_S = 10.0


class EngineClient:
    """Asks one server, or several that serve the same model; made inside an event loop, safe for many rollouts on it.

    `way` says how images get into requests; without it each server is asked what it takes. `timeout`
    bounds a call with all its tries. `patience` is how long a call waits for a server to be there,
    when none is.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        model: str | None = None,
        *,
        way: Way | None = None,
        timeout: float = TIMEOUT_S,
        patience: float = PATIENCE_S,
    ) -> None:
        self.model = model
        self._timeout, self._patience = timeout, patience
        addresses = dict.fromkeys([urls] if isinstance(urls, str) else urls)
        if not addresses:
            raise ConfigError("there is no engine to ask", remedy="Give the url of at least one")
        self._fleet = Fleet([Server(url, way) for url in addresses])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def generate(
        self,
        prompt: Rendered,
        sampling: SamplingParams,
        *,
        request_id: str,
        session: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> Completion:
        """One completion of the prompt.

        Calls of one `session`, which is a conversation's name, go to the same server as long as it is
        there, because it has the conversation's beginning in its cache. A lower `priority` is served
        earlier, by a vLLM if it schedules by priority. Prompts with different salts share no cache.
        """

        async def ask(server: Server) -> Completion:
            server.check(prompt.family)
            request = generate_request(
                prompt,
                sampling,
                way=server.way,
                model=self.model,
                request_id=request_id,
                priority=priority,
                cache_salt=cache_salt,
            )
            return await _ask(server, request, prompt, session or request_id)

        try:
            return await self._try(session or request_id, ask)
        except FilmrollError as error:
            raise error.about(f"request {request_id}") from error.__cause__

    async def update_weights(self, version: int) -> None:
        """Have all servers load a version that the trainer has written; they sample with it when this returns.

        A server that is not there gets it before it is used again. If none is there, or one refuses
        the version, that is an error.
        """
        async with self._in_time():
            await self._fleet.publish(version, self._patience)

    def expect_weights(self, version: int) -> None:
        """Know that another client has published a version: what a server answers by an older one is not used."""
        self._fleet.expect(version)

    async def close(self) -> None:
        await self._fleet.close()

    async def _try(self, session: str, ask: Callable[[Server], Awaitable[Completion]]) -> Completion:
        """Ask until one server answers. What a server refuses is refused, and asked no other."""
        tries = Tries(self._patience)
        failed: set[Server] = set()
        async with self._in_time(tries):
            while True:
                server = await self._fleet.choose(session, failed, tries)
                try:
                    return await ask(server)
                except Failed as one:
                    if one.gone:
                        self._fleet.lost(server)
                    tries.failed(one)
                    failed.add(server)
                    if self._fleet.exhausted(failed):
                        await tries.pause(one.after)
                        failed.clear()

    @asynccontextmanager
    async def _in_time(self, tries: Tries | None = None) -> AsyncIterator[None]:
        """What is done inside ends in time, or with an EngineUnavailableError."""
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except TimeoutError:
            said = f"; before that {tries.last}" if tries is not None and tries.last is not None else ""
            raise EngineUnavailableError(f"the engine gave no answer within {self._timeout:g} seconds{said}") from None


async def _ask(server: Server, request: GenerateRequest, prompt: Rendered, session: str) -> Completion:
    """One server's completion, by weights that are not older than those it was known to have when it was asked."""
    expected, way = server.version, server.way
    digests = {text: digest_of(text) for text in references_of(request)} if server.takes_hashes else {}
    body = encode(by_hashes(request, {text: digest for text, digest in digests.items() if digest in server.seen}))
    sent = len(body)
    try:
        content = await server.generate(body, session)
    except UnknownReferenceError:
        body = encode(request)
        sent += len(body)
        content = await server.generate(body, session)
    done = completion(read_answer(content), prompt, way, sent)
    if expected is not None and done.version < expected:
        raise Failed(
            EngineUnavailableError(
                f"the engine answered by weights {done.version}, though it was given {expected}",
                remedy="It was started anew, or its answers do not say which weights are theirs",
            ),
            reached=True,
            gone=True,
        )
    for digest in digests.values():
        server.seen.add(digest, None)
    return done
