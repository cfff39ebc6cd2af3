"""The path of one request: its claims are read, its images verified and developed, vLLM answers, a receipt is added."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from filmroll.engine.http import error_answer
from filmroll.engine.images.resolve import Claims
from filmroll.engine.images.resolver import Resolver, Visit
from filmroll.engine.statistics import Statistics, shared_statistics
from filmroll.engine.vllm import inside
from filmroll.engine.vllm.identity import identity
from filmroll.engine.vllm.settings import EXAMPLE, Settings, read_settings
from filmroll.errors import CheckpointError, ConfigError, FilmrollError, PlacementError, RequestError
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

log = logging.getLogger(__name__)

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

    def __init__(self, server: inside.Server) -> None:
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
        return inside.has_references(request) or (self._resolver is not None and inside.has_digests(request))

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
            with _foreseen():
                prompt = await self._prompt(visit, request)
                inside.forbid_tokens(request, prompt.family.placeholders.unsampled, SUPPRESSED)
            sent = await self._sent(visit, prompt, resend=False)
            try:
                answer = await self._answer(request, raw_request, prompt, sent)
            except Exception as error:
                if not (inside.failed_inside(error) and None in sent):
                    raise
                # vLLM's cache and its engine's have drifted apart: once more, with everything.
                sent = await self._sent(visit, prompt, resend=True)
                answer = await self._answer(request, raw_request, prompt, sent)
        images = len(prompt.identities)
        receipt = Receipt(images, images, images, images)
        if not inside.is_refusal(answer):
            self._statistics.add_receipt(receipt)
        return inside.with_receipt(answer, receipt)

    def admit(self, request: Any, raw_request: Any) -> None:
        """Refuse a request whose images are no references, if this server takes nothing else or they do not add up."""
        inside.answer_errors(raw_request, _answered)
        _check_id(request)
        if self.families:
            _check_parts(request, self.families[0].placeholders.pad)
        field = inside.other_images(request) if self.only_references else None
        if field is not None:
            raise RequestError(
                "this server takes images as references and in no other way",
                remedy="Send the mmraw: reference of each image in features.kwargs_data",
                field=field,
            )
        if self.only_references and self.families:
            _check_blind(request, self.families[0].placeholders.image)

    def _check_model(self, family: Family) -> None:
        """The arguments made here for vLLM's model are those that vLLM makes, or the server does not start."""
        example = self.server.example(_modality(family), *EXAMPLE_SIZE)
        made = self.server.item(self._values(family.pixels([example.picture], "uint8"), family), _modality(family))
        differences = example.differences(made, family.layout(*example.picture.size).features)
        if differences:
            raise ConfigError(
                f"vLLM's model takes other arguments than filmroll makes for {family.name}: {'; '.join(differences)}",
                remedy="Settings of the image processor belong into the checkpoint's files, not into vLLM's flags; "
                "else this model cannot be served with references: leave the store out",
            )

    async def _answer(self, request: Any, raw_request: Any, prompt: Prompt, sent: Sequence[inside.Item | None]) -> Any:
        prepared = inside.engine_input(request, prompt.modality, sent, prompt.identities, prompt.places())
        answered = False
        try:
            answer = await self.server.serve(request, raw_request, prepared)
            if None in sent:
                answer = await inside.begun(answer)
            answered = not inside.is_refusal(answer)
            return answer
        finally:
            if not answered:
                # Whether the engine has got the images is not known.
                await asyncio.shield(self.server.forget(prompt.identities))

    async def _prompt(self, visit: Visit, request: Any) -> Prompt:
        _check_id(request)
        wanted = await visit.run(lambda: inside.wire_request(request))
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

    async def _sent(self, visit: Visit, prompt: Prompt, *, resend: bool) -> list[inside.Item | None]:
        """What goes to the engine for each image, in prompt order."""
        with _foreseen():
            sent = None
            if not resend:
                sent = await self.server.enter(prompt.identities, await self._items(visit, prompt, everything=False))
            if sent is None:
                # vLLM has dropped one in the meantime, or is not believed.
                items = await self._items(visit, prompt, everything=True)
                sent = await self.server.enter(prompt.identities, items, resend=resend)
            if sent is None:
                raise RequestError(
                    "vLLM's cache has no room for the images of this prompt together",
                    remedy="Send fewer or smaller images, or start vLLM with a larger --mm-processor-cache-gb",
                    field=prompt.claims.field,
                )
        return sent

    async def _items(self, visit: Visit, prompt: Prompt, *, everything: bool) -> dict[str, inside.Item]:
        """The distinct images that vLLM needs, by identity; the claims about all of them are checked."""
        pictures = await visit.pictures(
            prompt.claims, kept=lambda descriptor: not everything and self.server.keeps(identity(descriptor))
        )
        named = zip(prompt.identities, pictures, strict=True)
        needed = {name: picture.arrays for name, picture in named if picture is not None}
        works = [partial(self._item, arrays, prompt) for arrays in needed.values()]
        return dict(zip(needed, await visit.each(works, prompt.claims.field), strict=True))

    def _item(self, levels: Arrays, prompt: Prompt) -> inside.Item:
        return self.server.item(self._values(levels, prompt.family), prompt.modality)

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


def _check_id(request: Any) -> None:
    """vLLM repeats it in its answer, and fails where it cannot be written."""
    try:
        request.request_id.encode()
    except UnicodeEncodeError:
        raise RequestError("it holds half of a character", field="request_id") from None


def _check_blind(request: Any, placeholder: int) -> None:
    """vLLM answers a prompt that shows nothing where an image should be."""
    if placeholder in request.token_ids:
        raise PlacementError(
            f"token {request.token_ids.index(placeholder)} is an image placeholder that belongs to no image",
            remedy="Send a reference and a placement for every image in the prompt",
            field="token_ids",
        )


def _check_parts(request: Any, pad: int) -> None:
    """vLLM expands pads: with fewer than images it fails inside, with more it answers for some of them."""
    images, pads = inside.image_parts(request), request.token_ids.count(pad)
    if images is not None and images != pads:
        raise RequestError(
            f"the tokens hold {pads} image pads, there are {images} content parts",
            remedy="Send the prompt with one pad for each image; the engine expands them",
            field="content_parts",
        )


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


@contextmanager
def _foreseen() -> Iterator[None]:
    """Whatever goes wrong inside becomes an error that says nothing private."""
    try:
        yield
    except FilmrollError:
        raise
    except Exception:
        log.exception("a request with references failed in a way nobody foresaw")
        raise FilmrollError("the engine failed on this request; its log says why") from None


@contextmanager
def counted(raw_request: Any, statistics: Statistics) -> Iterator[None]:
    """Around a request that filmroll serves: it is counted, and a FilmrollError becomes its answer, and is counted."""
    inside.answer_errors(raw_request, _answered)
    statistics.add(requests=1)
    try:
        yield
    except FilmrollError as error:
        statistics.reject(error.code)
        raise


async def _answered(_raw_request: Any, error: FilmrollError) -> Any:
    """The answer to a request that was refused."""
    if error.status >= 500:
        log.warning("a request with references failed: %s", error)
    return error_answer(error)
