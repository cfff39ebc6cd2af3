"""Rendering for many rollouts on one event loop: in a few threads, in the order in which it was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import anyio.to_thread

from filmroll.errors import ConfigError
from filmroll.render.messages import Message
from filmroll.render.renderer import Rendered, Renderer

T = TypeVar("T")

THREADS = 2
"""Encoding lets go of the interpreter, what is around it does not: each further thread holds the loop up more."""


class RendererPool:
    """A renderer that the event loop waits for without being held up.

    At most `threads` renderings run at a time; the others wait in order and hold no thread. An error
    reaches whoever asked. Who is cancelled gets it at once: what has not begun never does, what has is
    finished in its thread and thrown away.
    """

    def __init__(self, renderer: Renderer, *, threads: int = THREADS) -> None:
        if threads < 1:
            raise ConfigError(f"a pool of {threads} threads renders nothing", remedy="Give it at least 1")
        self.renderer = renderer
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="render")

    async def ingest(self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None) -> list[dict[str, Any]]:
        """As `Renderer.ingest`. It mostly waits for a disk, so many may do it at once, beside the renderings."""
        return await anyio.to_thread.run_sync(partial(self.renderer.ingest, messages, tools=tools))

    async def render(
        self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None, add_generation_prompt: bool = True
    ) -> Rendered:
        """As `Renderer.render`."""
        return await self.run(self.renderer.render, messages, tools=tools, add_generation_prompt=add_generation_prompt)

    async def bridge(
        self,
        previous: Rendered,
        completion_ids: Sequence[int],
        new_messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
    ) -> Rendered:
        """As `Renderer.bridge`."""
        return await self.run(self.renderer.bridge, previous, completion_ids, new_messages, tools=tools)

    async def run(self, work: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Whatever else takes the renderer's time, in the same queue."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *arguments, **options))
