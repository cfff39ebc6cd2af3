"""The endpoint: a request's choices are sampled side by side, and told whole or as they come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from filmroll.engine.chat.answers import DONE, Json, Paper, Spoken, event
from filmroll.engine.chat.prompt import keep_images, write_prompt
from filmroll.engine.chat.request import MAX_BODY_BYTES, ChatRequest, read_chat
from filmroll.engine.chat.speech import Speech
from filmroll.engine.chat.telling import Told
from filmroll.engine.http import read_body, while_connected
from filmroll.errors import EngineError, FilmrollError, RequestError
from filmroll.render import Rendered, Renderer, RendererPool, load_renderer
from filmroll.wire.generate import GenerateRequest, SamplingParams, referring

if TYPE_CHECKING:
    from filmroll.engine.embedded.engine import EmbeddedEngine

log = logging.getLogger(__name__)

_FIELDS = {
    "sampling_params.max_tokens": "max_tokens",
    "sampling_params.temperature": "temperature",
}
"""What the engine's fields are called here; its others come from the messages."""

KEEPERS = 4
"""Threads that put images into the store; apart from what renders, because an image's server may take its time."""


class Chat:
    """Answers chat requests with an engine. Its renderer is loaded when the first one comes."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        self._engine = engine
        self._store = engine.materializer.store
        self._keepers = ThreadPoolExecutor(KEEPERS, thread_name_prefix="filmroll-keeper")
        self._loading = asyncio.Lock()
        self._pool: RendererPool | None = None

    async def completions(self, request: Request) -> Response:
        asked = read_chat(await read_body(request, MAX_BODY_BYTES))
        answer = await while_connected(request, self._prepare(asked))
        if not asked.stream:
            return JSONResponse(await while_connected(request, answer.whole()))
        events = answer.events()
        # What is wrong before the first token is a status, as it is without a stream.
        first = await while_connected(request, anext(events))
        return StreamingResponse(_from(first, events), media_type="text/event-stream")

    async def _prepare(self, asked: ChatRequest) -> Answer:
        if asked.model is not None and asked.model != self._engine.name:
            raise RequestError(f"this engine serves {self._engine.name!r}", field="model")
        pool = await self._renderers()
        loop = asyncio.get_running_loop()
        kept = await loop.run_in_executor(self._keepers, keep_images, asked, self._store)
        prompt = await pool.run(write_prompt, asked, kept, pool.renderer)
        return Answer(self._engine, pool.renderer, asked, prompt)

    async def _renderers(self) -> RendererPool:
        async with self._loading:
            if self._pool is None:
                load = partial(load_renderer, typed="escape", max_tokens=self._engine.max_model_len - 1)
                renderer = await asyncio.to_thread(load, self._engine.model_dir, self._store)
                self._pool = RendererPool(renderer)
            return self._pool


class Answer:
    """The choices of one request."""

    def __init__(self, engine: EmbeddedEngine, renderer: Renderer, asked: ChatRequest, prompt: Rendered) -> None:
        self._engine = engine
        self._renderer = renderer
        self._asked = asked
        self._prompt = prompt
        self._request = generate_request(asked, prompt, renderer, engine.max_model_len)
        self._speeches = [Speech(renderer, prompt, asked) for _ in range(asked.n or 1)]
        self._paper = Paper(
            engine.name,
            renderer.tokenizer,
            self._request.token_ids,
            with_logprobs=bool(asked.logprobs),
            with_ids=bool(asked.return_token_ids),
        )

    async def whole(self) -> Json:
        async with _side_by_side(self._speak(number) for number in range(len(self._speeches))) as speaking:
            return self._paper.whole(await asyncio.gather(*speaking))

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events. An error before the first is raised; one after it is the last event."""
        begun = False
        try:
            async with aclosing(self._pieces()) as pieces:
                async for piece in pieces:
                    begun = True
                    yield event(piece)
            yield DONE
        except FilmrollError as error:
            if not begun:
                raise
            yield event({"error": error.wire()})
        except Exception:
            log.exception("a chat failed in a way nobody foresaw")
            if not begun:
                raise
            yield event({"error": EngineError("the engine failed on this request; its log says why").wire()})

    async def _pieces(self) -> AsyncGenerator[Json, None]:
        news: asyncio.Queue[int] = asyncio.Queue()
        told = [Told(self._paper, number, speech) for number, speech in enumerate(self._speeches)]
        async with _side_by_side(self._speak(one.number, news.put_nowait) for one in told) as speaking:
            for one, task in zip(told, speaking, strict=True):
                task.add_done_callback(partial(_tell, news, one.number))
            unfinished = set(range(len(told)))
            first = True
            while unfinished:
                number = await news.get()
                finished = speaking[number].result() if speaking[number].done() else None
                if first:
                    for one in told:
                        yield one.role()
                    first = False
                if finished is None:
                    for piece in told[number].more():
                        yield piece
                elif number in unfinished:
                    unfinished.remove(number)
                    for piece in told[number].rest(finished):
                        yield piece
        if self._asked.stream_options and self._asked.stream_options.include_usage:
            yield self._paper.sum(sum(len(speech.tokens) for speech in self._speeches))

    async def _speak(self, number: int, tell: Callable[[int], None] | None = None) -> Spoken:
        """Sample one choice, up to its end or a stop text; `tell` is told its number at each token."""
        speech = self._speeches[number]

        def heard(token: int, logprob: float) -> None:
            speech.hear(token, logprob)
            if speech.stopped:
                sampling.cancel()
            elif tell is not None:
                tell(number)

        sampling = asyncio.ensure_future(self._engine.generate(self._numbered(number), heard=heard))
        try:
            answer = await sampling
        except asyncio.CancelledError:
            if not speech.stopped:
                raise
        except FilmrollError as error:
            raise error.at(field=_FIELDS.get(error.field or "", "messages")) from error
        reason = "stop" if speech.stopped else answer.choices[0].finish_reason or "length"
        said = speech.whole()
        return Spoken(said, speech.tokens, speech.logprobs, "tool_calls" if said.calls and reason == "stop" else reason)

    def _numbered(self, number: int) -> GenerateRequest:
        """Choices of one request with a seed differ as if they had been asked for with the seeds that follow it."""
        params = self._request.sampling_params
        if params.seed is None:
            return self._request
        seeded = msgspec.structs.replace(params, seed=params.seed + number)
        return msgspec.structs.replace(self._request, sampling_params=seeded)


def generate_request(asked: ChatRequest, prompt: Rendered, renderer: Renderer, longest: int) -> GenerateRequest:
    """What the engine is asked for each choice."""
    expanded = prompt.expanded()
    return GenerateRequest(
        token_ids=expanded.token_ids.tolist(),
        sampling_params=SamplingParams(
            max_tokens=asked.longest or longest - len(expanded.token_ids),
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=asked.top_p or 1.0,
            top_k=asked.top_k or 0,
            seed=asked.seed,
            stop_token_ids=[*renderer.stop_token_ids, *(asked.stop_token_ids or ())],
        ),
        features=referring(prompt.images, expanded.offsets),
    )


@asynccontextmanager
async def _side_by_side(works: Iterable[Coroutine[Any, Any, Spoken]]) -> AsyncIterator[list[asyncio.Task[Spoken]]]:
    """All at once; whatever is not done at the end is given up."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()


def _tell(news: asyncio.Queue[int], number: int, _done: asyncio.Task[Spoken]) -> None:
    news.put_nowait(number)


async def _from(first: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for later in events:
        yield later
