"""The embedded engine: a transformers model that answers generate requests.

A request passes three places, each with threads of its own, so that none holds up another:
the event loop (limits, answers), small pools (URLs become references, references become verified
pixels), and the model thread (prefill and decoding, batched).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from uuid import uuid4

import torch
from prometheus_client import CollectorRegistry

from filmroll.engine.embedded.batch import Row, prompt_positions
from filmroll.engine.embedded.loop import BatchLimits, ModelLoop
from filmroll.engine.embedded.sampling import MIN_TEMPERATURE, own_bias, own_generator
from filmroll.engine.images.content import in_references
from filmroll.engine.images.resolve import Resolved
from filmroll.engine.images.resolver import Bounds, Resolver
from filmroll.engine.statistics import Statistics
from filmroll.engine.weights import read_weights
from filmroll.errors import FilmrollError, RequestError, WeightsError
from filmroll.families.base import Family
from filmroll.materialize.feed import load_model
from filmroll.materialize.materializer import Materializer
from filmroll.wire.generate import (
    Choice,
    GenerateAnswer,
    GenerateRequest,
    Logprobs,
    TokenLogprob,
    VersionSpan,
)

log = logging.getLogger(__name__)

OPENERS = 4
"""Threads that put images into the store; apart from the readers, because an image's server may take its time."""


Heard = Callable[[int, float], None]


class EmbeddedEngine:
    """Serves one checkpoint. Close it, or use it as a context manager.

    `weights_dir` is where `update_weights` finds new versions; `name` is what requests call the
    model; `seed` makes rows without a seed of their own reproducible where they arrive in the same
    order.
    """

    def __init__(
        self,
        model_dir: Path,
        family: Family,
        materializer: Materializer,
        *,
        max_batch: int = 64,
        batch_wait_ms: float = 2,
        max_model_len: int | None = None,
        threads: int | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        weights_dir: Path | None = None,
        name: str | None = None,
        seed: int | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        self.name = name or model_dir.name
        self.model_dir = model_dir
        self.family = family
        self.materializer = materializer
        self.statistics = Statistics(CollectorRegistry(), runs_model=True)
        self._model = load_model(model_dir, dtype=dtype, device=device)
        text = self._model.config.get_text_config()
        self.vocabulary: int = text.vocab_size
        self.max_model_len: int = max_model_len or text.max_position_embeddings
        self._weights_dir = weights_dir
        self.resolver = Resolver({family.recipe: materializer}, self.statistics, bounds)
        self._openers = ThreadPoolExecutor(OPENERS, thread_name_prefix="filmroll-opener")
        limits = BatchLimits(rows=max_batch, wait_s=batch_wait_ms / 1000)
        self._loop = ModelLoop(self._model, family, self.statistics, limits=limits, threads=threads, seed=seed)

    def __enter__(self) -> EmbeddedEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads; requests under way end with EngineUnavailableError."""
        self._loop.close()
        self._openers.shutdown(cancel_futures=True)
        self.resolver.close()

    @property
    def ended(self) -> Future[None]:
        """Done when it answers nothing any more: closed, or an error where its GPU has failed."""
        return self._loop.ended

    @property
    def version(self) -> int:
        """The version of the weights in use; 0 is the checkpoint itself."""
        return self._loop.version

    @property
    def takes_weights(self) -> bool:
        """Whether it was given a folder to take new weights from."""
        return self._weights_dir is not None

    async def generate(self, request: GenerateRequest, *, heard: Heard | None = None) -> GenerateAnswer:
        """Sample one completion. A cancelled call leaves its batch at the next step.

        `heard` is told of each token and its logprob as soon as it is sampled, on the event loop.
        """
        self.statistics.add(requests=1)
        try:
            hearing = None if heard is None else _on_this_loop(heard)
            async with self.resolver.visit() as visit:
                self._check(request)
                request = await self._in_references(request)
                images = await visit.resolve(request)
                row = await visit.run(lambda: self._row(request, images, hearing))
                self._loop.submit(row)
                answer = _answer(request, await asyncio.wrap_future(row.done))
        except FilmrollError as error:
            self.statistics.reject(error.code)
            raise
        if answer.receipt is not None:
            self.statistics.add_receipt(answer.receipt)
        return answer

    async def _in_references(self, request: GenerateRequest) -> GenerateRequest:
        if not request.content_parts:
            return request
        work = self._openers.submit(in_references, request, self.family, self.materializer.store, self.max_model_len)
        expanded = await asyncio.wrap_future(work)
        self._check_length(len(expanded.token_ids), expanded.sampling_params.max_tokens)
        return expanded

    async def update_weights(self, version: int) -> int:
        """Serve the weights that the trainer wrote as `version`; any version, older ones too.

        They are checked first; rows in flight finish on the old weights, later ones use the new.
        A WeightsError leaves the old weights in use.
        """
        if self._weights_dir is None:
            raise WeightsError("this engine was started without a folder to take weights from")
        tensors = await asyncio.to_thread(self._read, self._weights_dir, version)
        await asyncio.wrap_future(self._loop.between_batches(lambda: self._apply(version, tensors)))
        return version

    def _read(self, folder: Path, version: int) -> dict[str, torch.Tensor]:
        """In the model's own numbers: putting them in place needs no memory then, and cannot fail halfway."""
        wanted = self._model.state_dict()
        tensors = read_weights(folder, version, {name: tuple(value.shape) for name, value in wanted.items()})
        return {name: tensors[name].to(value.dtype) for name, value in wanted.items()}

    def _apply(self, version: int, tensors: dict[str, torch.Tensor]) -> None:
        for name, value in self._model.state_dict().items():
            value.copy_(tensors[name])
        self._loop.version = version
        self.statistics.set_version(version)

    def _check(self, request: GenerateRequest) -> None:
        """What can be said without looking at an image."""
        if request.model is not None and request.model != self.name:
            raise RequestError(f"this engine serves {self.name!r}", field="model")
        params = request.sampling_params
        if params.temperature != 0 and not params.temperature >= MIN_TEMPERATURE:
            raise RequestError(
                f"it is {params.temperature}, allowed are 0 and numbers from {MIN_TEMPERATURE}",
                field="sampling_params.temperature",
            )
        if max(params.logit_bias or (), default=0) >= self.vocabulary:
            raise RequestError(
                f"it is about token {max(params.logit_bias or ())}, token ids go from 0 to {self.vocabulary - 1}",
                field="sampling_params.logit_bias",
            )
        if not 0 <= min(request.token_ids) <= max(request.token_ids) < self.vocabulary:
            raise RequestError(f"token ids go from 0 to {self.vocabulary - 1}", field="token_ids")
        self._check_length(len(request.token_ids), params.max_tokens)

    def _check_length(self, prompt: int, new: int) -> None:
        if prompt >= self.max_model_len:
            raise RequestError(
                f"the prompt has {prompt} tokens, the model takes {self.max_model_len} with the answer",
                field="token_ids",
            )
        if prompt + new > self.max_model_len:
            raise RequestError(
                f"{prompt} prompt tokens and {new} new ones are more than {self.max_model_len}",
                field="sampling_params.max_tokens",
            )

    def _row(self, request: GenerateRequest, images: Resolved, heard: Heard | None) -> Row:
        return Row(
            prompt=request.token_ids,
            params=request.sampling_params,
            images=images,
            positions=prompt_positions(self._model, self.family, request.token_ids, images),
            generator=own_generator(request.sampling_params),
            bias=own_bias(request.sampling_params, self.family.placeholders.unsampled),
            priority=request.priority,
            heard=heard,
        )


def _on_this_loop(heard: Heard) -> Heard:
    """The same, called from another thread; one whose loop is gone hears nothing."""
    loop = asyncio.get_running_loop()

    def tell(token: int, logprob: float) -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(heard, token, logprob)

    return tell


def _answer(request: GenerateRequest, row: Row) -> GenerateAnswer:
    content = [TokenLogprob.of(*pair) for pair in zip(row.tokens, row.logprobs, strict=True)]
    choice = Choice(
        index=0,
        token_ids=row.tokens,
        logprobs=None if request.sampling_params.logprobs is None else Logprobs(content),
        finish_reason=row.finish_reason,
        weight_versions=[VersionSpan(str(row.version), 0, len(row.tokens))],
    )
    answer = GenerateAnswer(request_id=request.request_id or uuid4().hex, choices=[choice], receipt=row.receipt)
    if not request.return_token_ids:
        return answer
    placeholders = {} if request.features is None else request.features.mm_placeholders
    return GenerateAnswer(
        request_id=answer.request_id,
        choices=answer.choices,
        receipt=answer.receipt,
        prompt_token_ids=request.token_ids,
        mm_placeholders=placeholders,
    )
