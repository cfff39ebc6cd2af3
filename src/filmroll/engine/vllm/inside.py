"""All that filmroll relies on inside vLLM: 0.31.0 is the oldest, and tried as 0.32.0 is, the newest.

When a test against a newer vLLM fails, `tests/vllm/test_inside.py` says which of these names or
signatures has changed, and this file is the one to mend:

- `ServingTokens(engine_client, models, online_renderer, ...)` and its coroutine
  `serve_tokens(request, raw_request)`, which answers `/inference/v1/generate`. With neither content
  parts nor features it asks `online_renderer.preprocess_completion` for the prompt as the engine
  takes it: there, one that is prepared already can be given.
- the renderer: `mm_processor`, which says how an image's arrays are told apart
  (`_get_mm_fields_config`); `mm_processor_cache`; and `_mm_executor`, the one thread on which that
  cache is touched, so that its order is that of the engine's own cache.
- the cache: `is_cached_item`, `touch_sender_cache_item`, `get_and_update_item`, `invalidate`, and
  since 0.32 `release_sender_touches`. What it answers for an image that the engine has is None, or
  a handle.
- an answer's `choices`, their `token_ids`, and since 0.32 their `weight_versions`.
- the processor's `get_dummy_inputs` and `apply`: a picture of vLLM's own, and what it makes of it; and
  `info.parse_mm_data`, where its own is a video.
- configuration: the model's folder, name and length, its number format, `additional_config`, whether
  pixels are normalized on the device, the weight transfer backend, quantization, the number of API
  servers.
- the application: Starlette's own handlers of exceptions, by class; among them, by its name in the
  module that registers it, vLLM's `validation_exception_handler(request, error)`, whose error has the
  `body`; `state.serving_tokens`; the `router` on which the generate endpoint stands.

What is relied on for new weights is in `transfer.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from filmroll.errors import FilmrollError, RequestError
from filmroll.wire.generate import GenerateRequest, request_from

if TYPE_CHECKING:
    import torch

    from filmroll.families.base import Arrays
    from filmroll.wire.receipt import Receipt

SERVING = "vllm.entrypoints.scale_out.token_in_token_out.serving"
ROUTER = "vllm.entrypoints.scale_out.token_in_token_out.api_router"
VALIDATION = "vllm.entrypoints.serve.exception_handling.register"
TRANSFERS = "vllm.distributed.weight_transfer.factory"
BACKEND = "filmroll"
"""What `--weight-transfer-config` calls weights that come through a folder."""
PREFIXES = ("mmraw:", "mmfile:")
IMAGE_PART = "image_url"
"""The `type` of a content part that is an image."""
FAILED_CHUNK = 'data: {"error"'
"""What a stream says instead of tokens."""
HANDLERS = "starlette.exception_handlers"
"""Where a request finds the application's handlers of exceptions."""

PIXELS = "pixel_values"
TILED = frozenset({"num_patches", "image_num_patches"})
"""What some of vLLM's processors add to the image processor's arrays: into how many tiles an image is cut."""

TOLERANCE = 1e-2
"""Between values of a picture of one colour, in numbers that may have 8 bits."""

Item = Any
"""A `MultiModalKwargsItem`: one image as vLLM's model takes it."""
Result = TypeVar("Result")


def told(vllm_config: Any) -> Any:
    """What vLLM was told for filmroll, None for nothing."""
    told = vllm_config.additional_config
    return told.get("filmroll") if isinstance(told, Mapping) else None


def model_name(vllm_config: Any) -> str:
    """The folder that is served, or its name on the hub."""
    model, revision = vllm_config.model_config.model, vllm_config.model_config.revision
    return f"{model}@{revision}" if revision else str(model)


def serving_of(raw_request: Any) -> Any:
    """The `ServingTokens` that answers this application's requests."""
    return raw_request.app.state.serving_tokens


def has_references(request: Any) -> bool:
    """Whether any of a request's images is a reference; the others are vLLM's own business."""
    data = request.features.kwargs_data if request.features is not None else None
    return any(text is not None and text.startswith(PREFIXES) for texts in (data or {}).values() for text in texts)


def has_digests(request: Any) -> bool:
    """Whether any of a request's images has a hash and nothing more; what vLLM's own connectors bring is theirs."""
    features = request.features
    if features is None or features.mm_metadata is not None or request.ec_transfer_params:
        return False
    data = features.kwargs_data or {}
    return any(None in data.get(name, [None]) for name, hashes in features.mm_hashes.items() if hashes)


def other_images(request: Any) -> str | None:
    """The field in which a request brings images that are no references; None if it brings none."""
    if request.content_parts:
        return "content_parts"
    brought = request.features is not None and any(request.features.mm_hashes.values())
    return "features.kwargs_data" if brought else None


def image_parts(request: Any) -> int | None:
    """How many images a request brings as content parts; None if it brings none, or other things as well."""
    kinds = {part.get("type") for part in request.content_parts or ()}
    return len(request.content_parts) if kinds == {"image_url"} else None


def pictures_by_url(request: Any) -> list[dict[str, Any]]:
    """The content parts that vLLM takes for images; others it reads as something else, or not at all."""
    return [part for part in request.content_parts or [] if part.get("type") == IMAGE_PART]


def with_uuids(request: Any, uuids: Sequence[str | None]) -> Any:
    """The request, its image parts under these names in vLLM's caches."""
    names = iter(uuids)
    parts = [part | {"uuid": next(names)} if part.get("type") == IMAGE_PART else part for part in request.content_parts]
    return request.model_copy(update={"content_parts": parts})


def wire_request(request: Any) -> GenerateRequest:
    """The parts of vLLM's request that say where its images are, as filmroll reads them."""
    features = request.features
    spans = {name: [vars(span) for span in spans] for name, spans in features.mm_placeholders.items()}
    named = {"mm_hashes": features.mm_hashes, "mm_placeholders": spans, "kwargs_data": features.kwargs_data}
    return request_from({"token_ids": request.token_ids, "sampling_params": {}, "features": named})


def forbid_tokens(request: Any, tokens: Sequence[int], bias: float) -> None:
    """Never sample these, whatever the request says."""
    from filmroll.materialize.feed import bounded_bias

    params = request.sampling_params
    own = {token: bounded_bias(wanted) for token, wanted in (params.logit_bias or {}).items()}
    params.logit_bias = own | dict.fromkeys(tokens, bias)
    if params.allowed_token_ids is not None:
        # What is not allowed is lower still than what is biased.
        params.allowed_token_ids = [token for token in params.allowed_token_ids if token not in tokens]
        if not params.allowed_token_ids:
            raise RequestError(
                "it allows no token that may be sampled",
                remedy="Vision tokens are never sampled; allow others",
                field="sampling_params.allowed_token_ids",
            )


async def begun(answer: Any) -> Any:
    """The answer; of a stream, once it is known that the engine has not failed before its first tokens."""
    if not isinstance(answer, AsyncGenerator):
        return answer
    first = await anext(answer)
    if first.startswith(FAILED_CHUNK):
        from vllm.exceptions import GenerationError

        await answer.aclose()
        raise GenerationError
    return _after(first, answer)


async def _after(first: str, rest: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    async with aclosing(rest):
        yield first
        async for chunk in rest:
            yield chunk


def is_refusal(answer: Any) -> bool:
    """Whether vLLM answers with an error instead of raising it."""
    return hasattr(answer, "error")


def with_receipt(answer: Any, receipt: Receipt) -> Any:
    """The answer and the receipt beside it; errors and streams go as they are."""
    return _with(answer, receipt=msgspec.to_builtins(receipt)) if _is_whole(answer) else answer


def with_version(answer: Any, version: int) -> Any:
    """The answer, each choice named as sampled by this version of the weights: what vLLM says itself from 0.32 on."""
    if not _is_whole(answer) or any(hasattr(choice, "weight_versions") for choice in answer.choices):
        return answer
    label = str(version)
    spans = [[{"version": label, "start": 0, "end": len(choice.token_ids)}] for choice in answer.choices]
    pairs = zip(answer.choices, spans, strict=True)
    return _with(answer, choices=[_with(choice, weight_versions=span) for choice, span in pairs])


def _is_whole(answer: Any) -> bool:
    """Whether it is an answer, and neither an error nor a stream."""
    from pydantic import BaseModel

    return isinstance(answer, BaseModel) and hasattr(answer, "choices")


def _with(model: Any, **fields: Any) -> Any:
    kind: Any = type(model)
    return _widened(kind, tuple(fields)).model_construct(**dict(model) | fields)


@cache
def _widened(kind: Any, names: tuple[str, ...]) -> Any:
    """A kind of pydantic's models with fields of these names, which are written as what they hold."""
    from pydantic import create_model

    fields: dict[str, Any] = dict.fromkeys(names, (Any, ...))
    return create_model(kind.__name__, __base__=kind, **fields)


def failed_inside(error: BaseException) -> bool:
    """Whether the engine itself failed on a request, as it does for an image that it was told to have."""
    from vllm.exceptions import GenerationError

    return isinstance(error, GenerationError)


def answer_errors(raw_request: Any, handler: Callable[[Any, FilmrollError], Any]) -> None:
    """Have the application answer filmroll's errors in their own form."""
    if raw_request is not None:
        handlers, _ = raw_request.scope[HANDLERS]
        handlers.setdefault(FilmrollError, handler)


@dataclass(frozen=True, slots=True)
class Example:
    """What vLLM makes of a picture: the model's arguments, and how many tokens take a feature."""

    picture: Any
    item: Item
    features: int

    def differences(self, item: Item, features: int) -> list[str]:
        """How another making of it differs, in words; empty if vLLM's model would notice nothing."""
        import torch

        ours, theirs = item.get_data(), self.item.get_data()
        found = [f"{name} is made by {'filmroll' if name in ours else 'vLLM'} alone" for name in ours.keys() ^ theirs]
        for name in sorted(ours.keys() & theirs):
            one, other = (torch.as_tensor(value) for value in (ours[name], theirs[name]))
            if (one.dtype, one.shape) != (other.dtype, other.shape):
                found.append(f"{name} is {one.dtype} {list(one.shape)}, vLLM's {other.dtype} {list(other.shape)}")
            elif not torch.allclose(one.double(), other.double(), atol=TOLERANCE):
                found.append(f"{name} has other values than vLLM's")
        if features != self.features:
            found.append(f"it takes {features} features, vLLM's {self.features}")
        return found


def _tiles(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """How many tiles one image has, where it may have several, under both names that vLLM's processors give that."""
    import torch

    pixels = tensors.get(PIXELS)
    return {} if pixels is None or pixels.ndim < 4 else dict.fromkeys(TILED, torch.tensor([pixels.shape[-4]]))


def _in_rows(tensor: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether a tensor has a row for the image, and in it one for each tile."""
    pixels = tensors[PIXELS]
    return pixels.ndim == 5 and tensor.shape[:2] == pixels.shape[:2]


class Server:
    """One API server of vLLM."""

    def __init__(self, serving: Any, serve_tokens: Callable[..., Any]) -> None:
        self._serving = serving
        self._serve_tokens = serve_tokens
        self._renderer = serving.online_renderer.renderer
        self._config = serving.engine_client.vllm_config
        self._shared: dict[str, Any] = {}
        self._types: dict[str, torch.dtype] = {}
        """Of the model's arguments, as vLLM's own processor makes them."""

    @property
    def engine(self) -> Any:
        """The client through which this server speaks to its engine."""
        return self._serving.engine_client

    @property
    def version(self) -> str:
        """vLLM's own."""
        from vllm import __version__

        return str(__version__)

    @property
    def name(self) -> str:
        """What requests call the model."""
        return str(self._config.model_config.served_model_name)

    @property
    def model(self) -> str:
        return model_name(self._config)

    @property
    def settings(self) -> Any:
        return told(self._config)

    @property
    def weight_transfer(self) -> str | None:
        """The backend that was chosen for new weights."""
        chosen = self._config.weight_transfer_config
        return None if chosen is None else str(chosen.backend)

    @property
    def quantization(self) -> str | None:
        """How its weights are made smaller."""
        chosen = self._config.model_config.quantization
        return None if chosen is None else str(chosen)

    @property
    def tied(self) -> bool:
        """Whether its head is the embeddings' tensor: what the configuration says, unless the checkpoint has both."""
        return bool(getattr(self._config.model_config.hf_config, "tie_word_embeddings", False))

    @property
    def api_servers(self) -> int:
        """How many processes take requests for one engine."""
        return int(self._config.parallel_config._api_process_count)

    @property
    def max_model_len(self) -> int:
        return int(self._config.model_config.max_model_len)

    @property
    def normalizes(self) -> bool:
        """Whether the model normalizes pixels on its device, and wants their levels."""
        return bool(getattr(self._config.model_config.get_multimodal_config(), "mm_device_do_normalize", False))

    def images_allowed(self, modality: str) -> int:
        """How many images a prompt may have."""
        return int(self._config.model_config.get_multimodal_config().get_limit_per_prompt(modality))

    def item(self, arrays: Arrays, modality: str) -> Item:
        """One image's arrays, under the names of its own image processor, as the model takes them."""
        from transformers import BatchFeature
        from vllm.multimodal.inputs import MultiModalKwargsItems

        processor = self._renderer.get_mm_processor()
        tensors = {name: self._tensor(name, array) for name, array in arrays.items()}
        batch = BatchFeature(tensors | _tiles(tensors) | self._shared)
        fields = processor._get_mm_fields_config(batch, {})
        if TILED & fields.keys():
            # There, an image's tiles stand in no row of their own.
            batch.update({name: one.flatten(0, 1) for name, one in tensors.items() if _in_rows(one, tensors)})
        (item,) = MultiModalKwargsItems.from_hf_inputs(batch, fields)[modality]
        return item

    def example(self, modality: str, width: int, height: int) -> Example:
        """A picture of one colour, and what vLLM itself makes of it."""
        import torch
        from PIL import Image
        from vllm.config.multimodal import ImageDummyOptions
        from vllm.multimodal.inputs import MultiModalSharedField
        from vllm.multimodal.processing import TimingContext

        processor = self._renderer.get_mm_processor()

        def make() -> Example:
            inputs = processor.get_dummy_inputs(
                seq_len=self.max_model_len,
                mm_counts={modality: 1},
                mm_options={modality: ImageDummyOptions(count=1, width=width, height=height)},
            )
            shown = inputs.mm_data_items[modality].get(0)
            if isinstance(shown, Mapping) and "image" not in shown:
                # A video, whatever was asked for: there, both are of one modality.
                shown = {"type": "image", "image": Image.new("RGB", (width, height), "white"), "uuid": None}
                inputs.mm_data_items = processor.info.parse_mm_data({modality: [shown]})
            made = processor.apply(inputs, TimingContext(enabled=False))
            (item,), (place,) = made["mm_kwargs"][modality], made["mm_placeholders"][modality]
            picture = shown["image"] if isinstance(shown, Mapping) else shown
            self._shared = {
                name: part.data for name, part in item.items() if isinstance(part.field, MultiModalSharedField)
            }
            self._types = {name: torch.as_tensor(value).dtype for name, value in item.get_data().items()}
            return Example(picture, item, place.get_num_embeds())

        # Where vLLM makes them, too: not everything in there may run twice at once.
        example: Example = self._renderer._mm_executor.submit(make).result()
        return example

    def _tensor(self, name: str, array: np.ndarray[Any, Any]) -> torch.Tensor:
        import torch

        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        if tensor.is_floating_point():
            return tensor.to(self._config.model_config.dtype)
        # Levels stay what they are; a mask or a count is of whichever type this transformers makes it of.
        return tensor if tensor.dtype == torch.uint8 else tensor.to(self._types.get(name, tensor.dtype))

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
        return await self._on_cache_thread(lambda: self._enter(identities, items, resend=resend))

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
            await self._on_cache_thread(lambda: [cache.invalidate(one) for one in identities])

    async def _on_cache_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._renderer._mm_executor, work)

    async def answer(self, request: Any, raw_request: Any) -> Any:
        """vLLM's own answer to a request of its own kind."""
        return await self._serve_tokens(self._serving, request, raw_request)

    async def serve(self, request: Any, raw_request: Any, engine_input: Any) -> Any:
        """vLLM's own answer to the request, whose prompt is prepared already."""
        serving = copy(self._serving)
        serving.online_renderer = _Prepared(engine_input)
        return await self._serve_tokens(serving, request.model_copy(update={"features": None}), raw_request)


def engine_input(
    request: Any,
    modality: str,
    sent: Sequence[Item | None],
    identities: Sequence[str],
    places: Sequence[tuple[int, np.ndarray[Any, Any]]],
) -> Any:
    """A prompt as the engine takes it; each place is an offset and which of the tokens after it take a feature."""
    import torch
    from vllm.inputs import mm_input
    from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

    ranges = [
        PlaceholderRange(offset, len(takes), None if takes.all() else torch.from_numpy(takes))
        for offset, takes in places
    ]
    return mm_input(
        prompt_token_ids=request.token_ids,
        mm_kwargs=MultiModalKwargsItems({modality: list(sent)}),
        mm_hashes={modality: list(identities)},
        mm_placeholders={modality: ranges},
        cache_salt=request.cache_salt,
    )


class _Prepared:
    """Stands for the renderer of a request whose prompt is prepared."""

    def __init__(self, engine_input: Any) -> None:
        self._engine_input = engine_input

    async def preprocess_completion(self, *_args: Any, **_kwargs: Any) -> tuple[Any]:
        return (self._engine_input,)
