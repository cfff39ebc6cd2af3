"""EngineClient: expanded tokens and image references in, sampled tokens with logprobs out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from filmroll.errors import (
    EngineAnswerError,
    EngineRefusedError,
    EngineUnavailableError,
    FilmrollError,
    ReceiptError,
)
from filmroll.render import Rendered
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.generate import (
    Features,
    GenerateAnswer,
    GenerateRequest,
    Placeholder,
    SamplingParams,
    encode,
    read_answer,
)
from filmroll.wire.receipt import Receipt
from filmroll.wire.reference import write_reference

NO_EVIDENCE = -9999.0
"""What an engine reports where it has no logprob for a token."""

CONNECTIONS = 1024
_JSON = {"content-type": "application/json"}
_NAMED = 4
"""Images that an error names where the engine does not say which of them it is about."""
_ATTEMPTS = 4
_FIRST_DELAY = 0.1


@dataclass(frozen=True, slots=True)
class Completion:
    """What the engine sampled, by which policy version, and what the request weighed."""

    token_ids: list[int]
    logprobs: list[float]
    version: int
    finish_reason: str
    request_bytes: int
    receipt: Receipt


class EngineClient:
    """Posts to one engine's `/inference/v1/generate`; made inside an event loop, safe for many rollouts on it."""

    def __init__(self, base_url: str, model: str | None = None, *, timeout: float = 300.0) -> None:
        self.model = model
        self._http = aiohttp.ClientSession(
            base_url,
            connector=aiohttp.TCPConnector(limit=CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=timeout),
        )

    async def generate(self, prompt: Rendered, sampling: SamplingParams, *, request_id: str) -> Completion:
        """One completion of the prompt, its images carried as references."""
        request = generate_request(prompt, sampling, model=self.model, request_id=request_id)
        body = encode(request)
        try:
            answer = read_answer(await self._post("/inference/v1/generate", body))
            return _completion(answer, prompt.images, len(body))
        except FilmrollError as error:
            raise error.about(f"request {request_id}") from error.__cause__

    async def update_weights(self, version: int) -> None:
        """Have the engine load a version that the trainer has written; it samples with it when this returns."""
        await self._post("/inference/v1/update_weights", msgspec.json.encode({"version": version}))

    async def close(self) -> None:
        await self._http.close()

    async def _post(self, path: str, body: bytes) -> bytes:
        """Connection loss and 5xx are tried again with growing pauses; a 4xx is the caller's to mend."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with self._http.post(path, data=body, headers=_JSON) as response:
                    status, content = response.status, await response.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                failed = EngineUnavailableError(
                    "the engine cannot be reached", remedy="Is it running?", private=f"{type(error).__name__}: {error}"
                )
            else:
                if status < 400:
                    return content
                if status < 500:
                    raise _refusal(status, content)
                failed = EngineUnavailableError(f"the engine failed: {_refusal(status, content)}")
            if attempt < _ATTEMPTS:
                await asyncio.sleep(_FIRST_DELAY * 2 ** (attempt - 1))
        raise failed


def generate_request(
    prompt: Rendered, sampling: SamplingParams, *, model: str | None = None, request_id: str | None = None
) -> GenerateRequest:
    """The request for a prompt: expanded tokens, one reference and one placement per image."""
    expanded = prompt.expanded()
    features = None
    if prompt.images:
        features = Features(
            mm_hashes={"image": [image.image.sha256 for image in prompt.images]},
            mm_placeholders={
                "image": [
                    Placeholder(offset, image.tokens)
                    for offset, image in zip(expanded.offsets, prompt.images, strict=True)
                ]
            },
            kwargs_data={"image": [write_reference(image) for image in prompt.images]},
        )
    return GenerateRequest(
        token_ids=expanded.token_ids.tolist(),
        sampling_params=sampling,
        model=model,
        features=features,
        request_id=request_id,
    )


def _completion(answer: GenerateAnswer, images: Sequence[ImageDescriptor], request_bytes: int) -> Completion:
    choice = answer.choices[0]
    content = choice.logprobs.content if choice.logprobs else []
    if [entry.token_id for entry in content] != choice.token_ids or not choice.token_ids:
        raise EngineAnswerError(
            f"the answer has {len(choice.token_ids)} tokens but logprobs for {len(content)}, or for others",
            remedy="Ask the engine for logprobs of the sampled tokens",
        )
    logprobs = [entry.logprob for entry in content]
    if any(not math.isfinite(value) or value <= NO_EVIDENCE for value in logprobs):
        raise EngineAnswerError("the answer has a token without a logprob, it cannot be trained on")
    receipt = answer.receipt or Receipt()
    if set(msgspec.structs.astuple(receipt)) != {len(images)}:
        sent = ", ".join(f"{number} is {image.image.sha256[:16]}" for number, image in enumerate(images[:_NAMED]))
        raise ReceiptError(
            f"{len(images)} images were sent{f' (image {sent})' if sent else ''}, the engine's receipt is {receipt}",
            remedy="Nothing that it sampled is used; look for an engine that drops images",
        )
    return Completion(
        choice.token_ids, logprobs, _version(choice.weight_versions), choice.finish_reason or "", request_bytes, receipt
    )


def _version(spans: Any) -> int:
    """The version that sampled the first token, -1 if the engine's label is no number."""
    label = spans[0].version if spans else ""
    return int(label) if label.isdecimal() else -1


def _refusal(status: int, content: bytes) -> EngineRefusedError:
    try:
        error = msgspec.json.decode(content)["error"]
        return EngineRefusedError(
            f"the engine refused the request ({status} {error.get('type')}): {error.get('message')}",
            field=error.get("param"),
            index=error.get("index"),
        )
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return EngineRefusedError(f"the engine answered {status} and no structured error")
