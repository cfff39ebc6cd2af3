"""vLLM's cache of images: what an API server believes that its engine has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from filmroll.engine.vllm.inside.items import Item

Result = TypeVar("Result")


class Cache:
    """One API server's. It is changed on one thread, so that its order is that of the engine's own cache."""

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer

    def keeps(self, identity: str) -> bool:
        """Whether the engine has this image, so that its pixels need not be sent again."""
        cache = self._renderer.mm_processor_cache
        return cache is not None and bool(cache.is_cached_item(identity))

    async def enter(
        self, identities: Sequence[str], items: Mapping[str, Item], *, resend: bool = False
    ) -> list[Item | None] | None:
        """What is sent for each image, None for one that the engine has; None for all if one is missing by now.

        With `resend` everything is sent, whatever the engine seems to have.
        """
        return await self._on_its_thread(lambda: self._enter(identities, items, resend=resend))

    def _enter(self, identities: Sequence[str], items: Mapping[str, Item], *, resend: bool) -> list[Item | None] | None:
        cache = self._renderer.mm_processor_cache
        if cache is None:
            return [items[one] for one in identities] if set(identities) <= items.keys() else None
        if any(one not in items and not cache.is_cached_item(one) for one in identities):
            return None
        try:
            # All are touched first: none of this prompt's may make room for another of them.
            for one in identities:
                cache.touch_sender_cache_item(one)
            sent = [cache.get_and_update_item((items[one], ()) if one in items else None, one)[0] for one in identities]
        except AssertionError:
            # vLLM's way to say that one was dropped in between after all.
            return None
        finally:
            if hasattr(cache, "release_sender_touches"):
                cache.release_sender_touches()
            self._renderer.update_mm_cache_stats()
        return [items[one] if resend and got is None else got for one, got in zip(identities, sent, strict=True)]

    async def forget(self, identities: Sequence[str]) -> None:
        """Believe no longer that the engine has these."""
        cache = self._renderer.mm_processor_cache
        if cache is not None:
            await self._on_its_thread(lambda: [cache.invalidate(one) for one in identities])

    async def _on_its_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._renderer._mm_executor, work)
