"""Content parts at the generate endpoint: what they claim is compared before vLLM believes it.

vLLM takes the name under which its caches know an image from the part's `uuid`: whoever sends other
pixels with the uuid of an image would answer for it from then on. So a stored image gets a name that
follows from its digest with a key of the server's own, and the uuid is compared.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from typing import Any

from filmroll.engine.statistics import shared_statistics
from filmroll.engine.vllm.answering import counted
from filmroll.engine.vllm.identity import part_identity
from filmroll.engine.vllm.inside import answers, connector, requests
from filmroll.engine.vllm.inside.configuration import CONNECTOR
from filmroll.engine.vllm.inside.server import Server
from filmroll.engine.vllm.settings import EXAMPLE, read_settings
from filmroll.engine.vllm.stored import StoredImages
from filmroll.errors import ConfigError, FilmrollError, FingerprintError, RequestError
from filmroll.families import Family
from filmroll.image import INLINE
from filmroll.materialize.feed import SUPPRESSED
from filmroll.store import Limits
from filmroll.store.inline import decoded
from filmroll.wire.receipt import Receipt

FIELD = "content_parts"

_UUID = re.compile(r"([0-9a-f]{64})-([0-9a-f]+)")
_NAME = re.compile(r"([0-9a-f]{16,64})\.[a-z]+\Z")
"""A stored image's file, by which its url ends: all of its digest, or in other systems' files as much as they kept."""


class ContentParts:
    """What serves requests with content parts in one API server."""

    def __init__(self, server: Server, families: Sequence[Family]) -> None:
        self.server = server
        settings = read_settings(server.settings)
        store = settings.open_store()
        self._limits = Limits() if store is None else store.limits
        self._images: StoredImages | None = None
        self._fetches = connector.is_chosen()
        self._statistics = shared_statistics()
        self._families = {family.recipe: family for family in families}
        if store is not None:
            self._images = StoredImages(
                store, cache_bytes=settings.cache_bytes, readers=settings.readers, watch=self._statistics
            )
            connector.connect(self._images)
        elif self._fetches:
            raise ConfigError(
                f"VLLM_MEDIA_CONNECTOR is {CONNECTOR}, and no store is named", remedy=f"Start it with {EXAMPLE}"
            )

    def concern(self, request: Any) -> bool:
        """Whether any part of the request is a stored image, or says so; the others are vLLM's own business."""
        if self._images is None:
            return False
        return any(self._is_stored(part) or _claim(part) is not None for part in requests.pictures_by_url(request))

    async def serve(self, request: Any, raw_request: Any) -> Any:
        """vLLM's answer; a FilmrollError, which becomes the answer, for parts that are refused.

        A receipt is added where every image was read from the store in this very request.
        """
        with counted(raw_request, self._statistics):
            return await self._served(request, raw_request)

    async def _served(self, request: Any, raw_request: Any) -> Any:
        parts = requests.pictures_by_url(request)
        family = next(iter(self._families.values()))
        names = await asyncio.to_thread(self._names, parts)
        requests.forbid_tokens(request, family.placeholders.unsampled, SUPPRESSED)
        try:
            answer = await self._answer(request, raw_request, names)
        except Exception as error:
            if (refused := connector.refusal(error)) is None:
                raise
            problem, url = refused
            raise problem.at(field=FIELD, index=[part.get("url") for part in parts].index(url)) from None
        if not (self._fetches and all(map(self._is_stored, parts))):
            return answer
        receipt = Receipt(*[len(parts)] * 4)
        self._statistics.add_receipt(receipt)
        return answers.with_receipt(answer, receipt)

    async def _answer(self, request: Any, raw_request: Any, names: Sequence[str | None]) -> Any:
        try:
            return await answers.begun(await self.server.answer(requests.with_uuids(request, names), raw_request))
        except Exception as error:
            if not answers.failed_inside(error):
                raise
            # vLLM's cache and its engine's have drifted apart: once more, with all images.
            await self.server.cache.forget([name for name in names if name is not None])
            return await self.server.answer(requests.with_uuids(request, names), raw_request)

    def _is_stored(self, part: Any) -> bool:
        return self._images is not None and self._images.has_place_for(part.get("url"))

    def _names(self, parts: Sequence[Any]) -> list[str | None]:
        """The names of the parts' images in vLLM's caches."""
        names = []
        for index, part in enumerate(parts):
            try:
                names.append(self._name(part))
            except FilmrollError as error:
                raise error.at(field=FIELD, index=index) from None
        return names

    def _name(self, part: Any) -> str | None:
        claim = _claim(part)
        if claim is None:
            own: str | None = part.get("uuid")
            return part_identity(self._digest(part)) if self._is_stored(part) else own
        digest = self._digest(part) if part.get("url") else claim[0]
        self._check(claim, digest)
        return part_identity(digest)

    def _digest(self, part: Any) -> str:
        """As much of the image's digest as its url tells, a data: URI all of it; of another url nothing is known."""
        url = part.get("url")
        if self._is_stored(part):
            named = _NAME.search(url)
            return "" if named is None else named[1]
        if isinstance(url, str) and url.startswith(INLINE):
            return hashlib.sha256(decoded(url, self._limits)).hexdigest()
        return ""

    def _check(self, claim: tuple[str, str], digest: str) -> None:
        claimed, recipe = claim
        if not digest or not claimed.startswith(digest):
            raise RequestError(
                "its uuid is of another image than its url",
                remedy="It is <sha256 of the stored image>-<recipe of the model's family>; or leave it out",
            )
        if recipe not in self._families:
            raise FingerprintError(
                f"its uuid's pixel recipe is {recipe[:64]!r}, the model's are {', '.join(self._families)}",
                remedy="Describe the image again, with the family of the served checkpoint",
            )


def _claim(part: Any) -> tuple[str, str] | None:
    """The digest and the recipe in a uuid of ours; None for any other."""
    uuid = part.get("uuid")
    match = _UUID.fullmatch(uuid) if isinstance(uuid, str) else None
    return None if match is None else (match[1], match[2])
