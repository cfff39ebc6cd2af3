"""From requests to verified pixels, for every engine: how many at a time, in which order, on which threads.

A request makes a visit. It waits until there is room for it, has its claims read and its images
loaded by the readers, side by side and in turn with other requests', and its pixels count as held
until the visit ends. The event loop only waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from filmroll.engine.images.gate import Gate
from filmroll.engine.images.readers import Readers
from filmroll.engine.images.remembered import Remembered
from filmroll.engine.images.resolve import Claims, Read, References, Resolved, claims_of, named, read_references
from filmroll.engine.statistics import Statistics
from filmroll.errors import EngineUnavailableError
from filmroll.families.base import Family
from filmroll.image import ImageRef
from filmroll.materialize import features
from filmroll.materialize.materializer import Materializer
from filmroll.materialize.sheet import Picture
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.feature_reference import FeatureReference
from filmroll.wire.generate import GenerateRequest
from filmroll.wire.receipt import Receipt

Result = TypeVar("Result")

Kept = Callable[[ImageDescriptor], bool]
"""Whether somebody else keeps the pixels of an image, so that its claims are all there is to check."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What requests may take of the process together."""

    readers: int = 4
    """Threads that read, verify and decode."""
    in_flight: int = 64
    """Requests whose images are read at the same time; others wait in order."""
    under_way: int = 4096
    """Requests that may be there at all, answered ones not counted; more are told to come back."""
    pixel_bytes: int = 2 * 2**30
    """Pixels of the requests under way, an image that several show counted once. A larger request goes alone."""


class Resolver:
    """One for an engine. `materializers` by the recipe of their pixels; the first is for references that say none.

    `weigh` says how many bytes an image takes while its request is under way.
    """

    def __init__(
        self,
        materializers: Mapping[str, Materializer],
        statistics: Statistics,
        bounds: Bounds | None = None,
        weigh: Callable[[Family, ImageRef], int] = Family.level_bytes,
    ) -> None:
        self.bounds = bounds or Bounds()
        self.materializers = materializers
        self.remembered = Remembered(statistics)
        self._weigh = weigh
        self._readers = Readers(self.bounds.readers)
        self._room = Gate(self.bounds.in_flight, statistics.set_requests)
        self._pixels = Gate(self.bounds.pixel_bytes, lambda nbytes, _: statistics.set_pixel_bytes(nbytes))
        self._under_way = 0
        for materializer in materializers.values():
            materializer.report_to(statistics)

    @asynccontextmanager
    async def visit(self) -> AsyncIterator[Visit]:
        """One request's stay, from its arrival to its answer."""
        if self._under_way >= self.bounds.under_way:
            raise EngineUnavailableError(
                f"{self.bounds.under_way} requests are under way", remedy="Send it again later"
            )
        self._under_way += 1
        try:
            async with AsyncExitStack() as held:
                yield Visit(self, held)
        finally:
            self._under_way -= 1

    @property
    def family(self) -> Family:
        """The model's; however the pixels are made, layout and tokens are the same."""
        return self._first.family

    def complete(self, read: Read) -> ImageDescriptor:
        """The whole descriptor that a reference stands for."""
        if isinstance(read, FeatureReference):
            return features.described(read, [one.features for one in self.materializers.values()])
        return self._first.complete(read)

    def weigh(self, image: ImageRef) -> int:
        return self._weigh(self.family, image)

    def load(self, descriptor: ImageDescriptor, kept: bool) -> Future[Picture] | None:
        """The image, every claim about it checked; None where the pixels are kept elsewhere and the image was seen."""
        # A recipe that none of them has is refused by whichever.
        materializer = self.materializers.get(descriptor.recipe, self._first)
        return None if kept and materializer.recall(descriptor) else materializer.begin(descriptor)

    def close(self) -> None:
        self._readers.close()

    @property
    def _first(self) -> Materializer:
        return next(iter(self.materializers.values()))


class Visit:
    """What one request may ask for while it is there."""

    def __init__(self, resolver: Resolver, held: AsyncExitStack) -> None:
        self._resolver = resolver
        self._held = held
        self._holds = False
        self._reading = AsyncExitStack()
        held.push_async_exit(self._reading)

    async def run(self, work: Callable[[], Result | Future[Result]]) -> Result:
        """Have work done by the readers when it is this request's turn."""
        return await asyncio.wrap_future(self._submit(work))

    async def each(self, works: Sequence[Callable[[], Any]], field: str) -> list[Any]:
        """What each piece of work gives, done side by side; else the error of the first that fails, in their order."""
        running = [self._submit(work) for work in works]
        done = []
        try:
            for index, one in enumerate(running):
                with named(field, index):
                    done.append(await asyncio.wrap_future(one))
        finally:
            for one in running:
                one.cancel()
        return done

    async def claims(self, request: GenerateRequest) -> Claims:
        """Everything the request says about its images, whole in itself, not yet compared with any image's pixels.

        Other systems' references need their images: they do not say how many tokens those take.
        """
        await self._reading.enter_async_context(self._resolver._room.passed({self: 1}))
        references, claims = await self.run(partial(self._read, request))
        if claims is not None:
            return claims
        field = f"features.kwargs_data.{references.modality}"
        whole = await self.each([partial(self._resolver.complete, one) for one in references.read], field)
        return await self.run(lambda: claims_of(request, references, whole, self._resolver.family))

    async def pictures(self, claims: Claims, kept: Kept = lambda _: False) -> list[Picture | None]:
        """Every image verified, decoded and compared with its claims, in order; None where `kept` has the pixels.

        Pixels count as held from here to the end of the visit. When it is called again, it waits for no room
        and counts no more: two who hold some and wait for more would wait for each other.
        """
        elsewhere = []
        weights: dict[Hashable, int] = {}
        for index, descriptor in enumerate(claims.descriptors):
            elsewhere.append(kept(descriptor))
            if not elsewhere[-1]:
                with named(claims.field, index):
                    weights[descriptor.identity] = self._resolver.weigh(descriptor.image)
        if weights and not self._holds:
            self._holds = True
            await self._held.enter_async_context(self._resolver._pixels.passed(weights))
        loads = [partial(self._resolver.load, *one) for one in zip(claims.descriptors, elsewhere, strict=True)]
        pictures: list[Picture | None] = await self.each(loads, claims.field)
        self._resolver.remembered.add(claims.texts)
        await self._reading.aclose()
        return pictures

    def _read(self, request: GenerateRequest) -> tuple[References, Claims | None]:
        """The references, and what they claim unless they have to be completed first."""
        references = read_references(request, self._resolver.remembered)
        whole = [one for one in references.read if isinstance(one, ImageDescriptor)]
        if len(whole) < len(references.read):
            return references, None
        return references, claims_of(request, references, whole, self._resolver.family)

    async def resolve(self, request: GenerateRequest) -> Resolved:
        """All the request's images."""
        claims = await self.claims(request)
        pictures = [picture for picture in await self.pictures(claims) if picture is not None]
        images = len(pictures)
        return Resolved(tuple(pictures), Receipt(referenced=len(claims.descriptors), verified=images, decoded=images))

    def _submit(self, work: Callable[[], Result | Future[Result]]) -> Future[Result]:
        return self._resolver._readers.submit(self, work)
