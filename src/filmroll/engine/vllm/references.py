"""The path of one request: its claims are read, its images verified and developed, vLLM answers, a receipt is added."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from filmroll.engine.images.resolve import Claims
from filmroll.engine.images.resolver import Resolver, Visit
from filmroll.engine.statistics import shared_statistics
from filmroll.engine.vllm import admission
from filmroll.engine.vllm.answering import answered, counted, foreseen
from filmroll.engine.vllm.identity import identity
from filmroll.engine.vllm.inside import answers, requests
from filmroll.engine.vllm.inside.application import answer_errors
from filmroll.engine.vllm.inside.items import Item
from filmroll.engine.vllm.inside.prompts import engine_input
from filmroll.engine.vllm.inside.server import Server
from filmroll.engine.vllm.settings import EXAMPLE, Settings, read_settings
from filmroll.errors import CheckpointError, ConfigError, RequestError
from filmroll.families import Family, load_family
from filmroll.families.base import Arrays
from filmroll.families.recipe import Backend
from filmroll.image import ImageRef
from filmroll.materialize.feed import SUPPRESSED
from filmroll.materialize.materializer import Materializer
from filmroll.pixels.late import normalize
from filmroll.pixels.patches import CHANNELS, LEVELS
from filmroll.store.store import Store
from filmroll.wire.receipt import Receipt

EXAMPLE_SIZE = (160, 96)
"""Width and height of the picture that is made of at the start, here and by vLLM."""
UNCHANGED: npt.NDArray[np.uint8] = np.tile(np.arange(LEVELS, dtype=np.uint8), (CHANNELS, 1))
"""What each level becomes where the model normalizes: itself, in as many copies as the tower reads."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request's images as far as that needs no image: which claims, under which identities."""

    family: Family
    claims: Claims
    identities: tuple[str, ...]

    @property
    def modality(self) -> str:
        return _modality(self.family)

    def places(self) -> list[tuple[int, npt.NDArray[np.bool_]]]:
        """Where each image stands, and which of its tokens take a feature."""
        pad = self.family.placeholders.image
        pairs = zip(self.claims.spans, self.claims.descriptors, strict=True)
        return [(span.offset, self.family.expansion(descriptor) == pad) for span, descriptor in pairs]


class References:
    """What serves requests with references in one API server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        settings = read_settings(server.settings)
        store = settings.open_store()
        materializers = {} if store is None else _materializers(server.model, store, settings)
        self.families = [materializer.family for materializer in materializers.values()]
        """The model's family, once for each recipe that is read; empty without a store."""
        for family in self.families:
            self._check_model(family)
        self.only_references = settings.only_references
        self._statistics = shared_statistics()
        self._resolver = (
            Resolver(materializers, self._statistics, settings.bounds, self._weigh) if materializers else None
        )

    def takes(self, request: Any) -> bool:
        """Whether any of a request's images is a reference, or a digest that stands for one."""
        return requests.has_references(request) or (self._resolver is not None and requests.has_digests(request))

    async def serve(self, request: Any, raw_request: Any) -> Any:
        """vLLM's answer with a receipt; a FilmrollError, which becomes the answer, for a request that is refused."""
        with counted(raw_request, self._statistics):
            return await self._served(request, raw_request)

    async def _served(self, request: Any, raw_request: Any) -> Any:
        if self._resolver is None:
            raise RequestError(
                "this server was started without a store, it reads no references",
                remedy=f"Start it with {EXAMPLE}",
                field="features.kwargs_data",
            )
        async with self._resolver.visit() as visit:
            with foreseen():
                prompt = await self._prompt(visit, request)
                requests.forbid_tokens(request, prompt.family.placeholders.unsampled, SUPPRESSED)
            sent = await self._sent(visit, prompt, resend=False)
            try:
                answer = await self._answer(request, raw_request, prompt, sent)
            except Exception as error:
                if not (answers.failed_inside(error) and None in sent):
                    raise
                # vLLM's cache and its engine's have drifted apart: once more, with everything.
                sent = await self._sent(visit, prompt, resend=True)
                answer = await self._answer(request, raw_request, prompt, sent)
        images = len(prompt.identities)
        receipt = Receipt(images, images, images, images)
        if not answers.is_refusal(answer):
            self._statistics.add_receipt(receipt)
        return answers.with_receipt(answer, receipt)

    def admit(self, request: Any, raw_request: Any) -> None:
        """Refuse a request whose images are no references, if this server takes nothing else or they do not add up."""
        answer_errors(raw_request, answered)
        placeholders = self.families[0].placeholders if self.families else None
        admission.check(request, placeholders, only_references=self.only_references)

    def _check_model(self, family: Family) -> None:
        """The arguments made here for vLLM's model are those that vLLM makes, or the server does not start."""
        items, modality = self.server.items, _modality(family)
        example = items.example(modality, *EXAMPLE_SIZE)
        made = items.make(self._values(family.pixels([example.picture], "uint8"), family), modality)
        differences = example.differences(made, family.layout(*example.picture.size).features)
        if differences:
            raise ConfigError(
                f"vLLM's model takes other arguments than filmroll makes for {family.name}: {'; '.join(differences)}",
                remedy="Settings of the image processor belong into the checkpoint's files, not into vLLM's flags; "
                "else this model cannot be served with references: leave the store out",
            )

    async def _answer(self, request: Any, raw_request: Any, prompt: Prompt, sent: Sequence[Item | None]) -> Any:
        prepared = engine_input(request, prompt.modality, sent, prompt.identities, prompt.places())
        answered = False
        try:
            answer = await self.server.serve(request, raw_request, prepared)
            if None in sent:
                answer = await answers.begun(answer)
            answered = not answers.is_refusal(answer)
            return answer
        finally:
            if not answered:
                # Whether the engine has got the images is not known.
                await asyncio.shield(self.server.cache.forget(prompt.identities))

    async def _prompt(self, visit: Visit, request: Any) -> Prompt:
        admission.check_id(request)
        wanted = await visit.run(lambda: requests.wire_request(request))
        if len(wanted.token_ids) >= self.server.max_model_len:
            raise RequestError(
                f"the prompt has {len(wanted.token_ids)} tokens: of {self.server.max_model_len} that the model takes, "
                "none is left to be sampled",
                field="token_ids",
            )
        claims = await visit.claims(wanted)
        prompt = Prompt(self.families[0], claims, tuple(map(identity, claims.descriptors)))
        allowed = self.server.images_allowed(prompt.modality)
        if len(prompt.identities) > allowed:
            raise RequestError(
                f"it has {len(prompt.identities)} images, this server takes {allowed}", field=claims.field
            )
        return prompt

    async def _sent(self, visit: Visit, prompt: Prompt, *, resend: bool) -> list[Item | None]:
        """What goes to the engine for each image, in prompt order."""
        with foreseen():
            sent = None
            if not resend:
                items = await self._items(visit, prompt, everything=False)
                sent = await self.server.cache.enter(prompt.identities, items)
            if sent is None:
                # vLLM has dropped one in the meantime, or is not believed.
                items = await self._items(visit, prompt, everything=True)
                sent = await self.server.cache.enter(prompt.identities, items, resend=resend)
            if sent is None:
                raise RequestError(
                    "vLLM's cache has no room for the images of this prompt together",
                    remedy="Send fewer or smaller images, or start vLLM with a larger --mm-processor-cache-gb",
                    field=prompt.claims.field,
                )
        return sent

    async def _items(self, visit: Visit, prompt: Prompt, *, everything: bool) -> dict[str, Item]:
        """The distinct images that vLLM needs, by identity; the claims about all of them are checked."""
        pictures = await visit.pictures(
            prompt.claims, kept=lambda descriptor: not everything and self.server.cache.keeps(identity(descriptor))
        )
        named = zip(prompt.identities, pictures, strict=True)
        needed = {name: picture.arrays for name, picture in named if picture is not None}
        works = [partial(self._item, arrays, prompt) for arrays in needed.values()]
        return dict(zip(needed, await visit.each(works, prompt.claims.field), strict=True))

    def _item(self, levels: Arrays, prompt: Prompt) -> Item:
        return self.server.items.make(self._values(levels, prompt.family), prompt.modality)

    def _weigh(self, family: Family, image: ImageRef) -> int:
        """What vLLM's own arguments take, which are there until it has answered."""
        return family.pixel_bytes(image) // (4 if self.server.normalizes else 1)

    def _values(self, levels: Arrays, family: Family) -> Arrays:
        if not self.server.normalizes:
            values = family.normalized(levels)
        else:
            values = {
                name: normalize(array, UNCHANGED, family.cut) if array.dtype == np.uint8 else array
                for name, array in levels.items()
            }
        return {family.vllm_names.get(name, name): array for name, array in values.items()}


def _modality(family: Family) -> str:
    return family.vllm_modality or "image"


def _materializers(model: str, store: Store, settings: Settings) -> dict[str, Materializer]:
    """By recipe: the engine makes the pixels that the writer and the trainer mean, with whichever backend."""
    found: dict[str, Materializer] = {}
    for backend in (None, *get_args(Backend)):
        try:
            family = load_family(model, backend=backend)
        except (CheckpointError, ConfigError):
            if backend is None:
                raise
            # This family knows only one backend, or this checkpoint's filter is none of the other's.
            continue
        if family.recipe not in found:
            features = settings.open_features(family)
            found[family.recipe] = Materializer(store, family, cache_bytes=settings.cache_bytes, features=features)
    return found
