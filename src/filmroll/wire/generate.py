"""The token-in, token-out request and its answer, as engines and clients exchange them.

The shape is that of `POST /inference/v1/generate`. Only what filmroll uses is declared; unknown
fields are passed over, as other servers and clients of this endpoint do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import msgspec

from filmroll.errors import EngineAnswerError, RequestError
from filmroll.wire.descriptor import ImageDescriptor, Name
from filmroll.wire.receipt import Receipt
from filmroll.wire.reference import write_reference

MAX_TOKENS = 2**20
NO_EVIDENCE = -9999.0
"""What an engine reports where it has no logprob for a token."""
_IMAGE = re.compile(r"features\.\w+\[\.\.\.\]\[([0-9]+)\]")
"""A field of the lists that have an entry for each image."""
_PLACE = re.compile(r"(.*) - at (?:`key` in )?`\$\.?(.*)`", re.DOTALL)
_TOKEN = re.compile(r"token_id:([0-9]{1,10})")

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], msgspec.Meta(min_length=1, max_length=MAX_TOKENS)]
_FEW = msgspec.Meta(max_length=8)
"""Modalities: their names are repeated in errors."""


class Placeholder(msgspec.Struct, frozen=True):
    """Where an image's placeholder tokens stand in the expanded prompt."""

    offset: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
    length: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]


class Features(msgspec.Struct, frozen=True):
    """Images of a request: parallel lists by modality, references in `kwargs_data`."""

    mm_hashes: Annotated[dict[Name, list[str]], _FEW]
    mm_placeholders: Annotated[dict[Name, list[Placeholder]], _FEW]
    kwargs_data: Annotated[dict[Name, list[str | None]], _FEW] | None = None


class ContentPart(msgspec.Struct, frozen=True):
    """An image by its URL, for an engine that expands the tokens itself: each has one pad in `token_ids`, in order."""

    url: str
    type: Literal["image_url"] = "image_url"
    uuid: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    """Of an image in the store `<sha256>-<recipe>`: it names the image in the engine's caches, and is compared."""


class SamplingParams(msgspec.Struct, frozen=True):
    """How to sample. `top_k` 0 and `top_p` 1 filter nothing; temperature 0 takes the likeliest."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)] = 16
    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] = 1.0
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=-1, lt=2**31)] = 0
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    stop_token_ids: Annotated[list[TokenId], msgspec.Meta(max_length=1024)] = []
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=1)] | None = 1
    skip_special_tokens: bool = False
    logit_bias: dict[TokenId, float] | None = None
    """Added to the logits of these tokens before anything else; up to 1e8 either way. Vision tokens are never sampled.

    A trainer knows of no bias: logprobs of what is sampled with one are not those that it computes.
    """


class GenerateRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One completion to sample after `token_ids`.

    Every image is already expanded in them, or stands in `content_parts` and is still one pad.
    """

    token_ids: TokenIds
    sampling_params: SamplingParams
    model: str | None = None
    features: Features | None = None
    content_parts: list[ContentPart] | None = None
    request_id: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    return_token_ids: bool = False
    priority: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] = 0
    """Of requests that wait, those with a lower one go first; in vLLM where it schedules by priority."""
    cache_salt: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)] | None = None
    """Prompts of different salts share no prefix cache; the embedded engine keeps nothing that a salt could part."""


class TokenLogprob(msgspec.Struct, frozen=True):
    """A sampled token's logprob. Read with `token_id`, or with `token` alone, as vLLM 0.31 writes it."""

    token_id: int = -1
    logprob: float = NO_EVIDENCE
    token: str = ""
    """The token as released clients look for it: `token_id:<id>`."""

    def __post_init__(self) -> None:
        if self.token_id < 0:
            named = _TOKEN.fullmatch(self.token)
            if named is None:
                raise ValueError("a logprob names no token: neither token_id nor token_id:<id> in token")
            msgspec.structs.force_setattr(self, "token_id", int(named[1]))

    @classmethod
    def of(cls, token_id: int, logprob: float) -> TokenLogprob:
        """In both forms, for clients of either kind."""
        return cls(token_id, logprob, f"token_id:{token_id}")


class Logprobs(msgspec.Struct, frozen=True):
    content: list[TokenLogprob]


class VersionSpan(msgspec.Struct, frozen=True):
    """Output tokens [start, end) were sampled by the weights labelled `version`."""

    version: str
    start: int
    end: int


class Choice(msgspec.Struct, frozen=True):
    index: int
    token_ids: list[int]
    logprobs: Logprobs | None
    finish_reason: str | None
    weight_versions: list[VersionSpan] | None = None


class GenerateAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    request_id: str
    choices: list[Choice]
    prompt_token_ids: list[int] | None = None
    mm_placeholders: dict[str, list[Placeholder]] | None = None
    receipt: Receipt | None = None


def referring(images: Sequence[ImageDescriptor], offsets: Sequence[int]) -> Features | None:
    """The part of a request that speaks of images, whose placeholders begin at these offsets."""
    if not images:
        return None
    spans = [Placeholder(offset, image.tokens) for offset, image in zip(offsets, images, strict=True)]
    return Features(
        mm_hashes={"image": [image.image.sha256 for image in images]},
        mm_placeholders={"image": spans},
        kwargs_data={"image": [write_reference(image) for image in images]},
    )


_request = msgspec.json.Decoder(GenerateRequest)
_answer = msgspec.json.Decoder(GenerateAnswer)
_encoder = msgspec.json.Encoder()


def encode(message: GenerateRequest | GenerateAnswer) -> bytes:
    return _encoder.encode(message)


def read_request(body: bytes) -> GenerateRequest:
    """A request whose parts agree with each other, or a RequestError that names the field."""
    return _checked(lambda: _request.decode(body))


def request_from(values: dict[str, Any]) -> GenerateRequest:
    """`read_request` for a body that somebody else has decoded."""
    return _checked(lambda: msgspec.convert(values, GenerateRequest))


def read_answer(body: bytes) -> GenerateAnswer:
    try:
        answer = _answer.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise EngineAnswerError(f"the engine's answer cannot be read: {error}") from None
    if not answer.choices:
        raise EngineAnswerError("the engine's answer holds no choice")
    return answer


def _checked(read: Callable[[], GenerateRequest]) -> GenerateRequest:
    try:
        request = read()
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        problem, field = named_field(str(error))
        image = _IMAGE.match(field or "")
        index = None if image is None else int(image[1])
        raise RequestError(f"the request cannot be read: {problem}", field=field, index=index) from None
    if request.features is not None:
        if request.content_parts:
            raise RequestError("images come in content_parts or in features, not in both", field="content_parts")
        _check_features(request.features, len(request.token_ids))
    return request


def _check_features(features: Features, prompt_tokens: int) -> None:
    """Parallel lists of equal lengths; placeholders sorted, apart, and inside the prompt."""
    for name in ("mm_placeholders", "kwargs_data"):
        lists: dict[str, list[Placeholder]] | dict[str, list[str | None]] | None = getattr(features, name)
        if lists is None:
            continue
        if set(lists) != set(features.mm_hashes):
            raise RequestError(
                f"it has the modalities {sorted(lists)}, mm_hashes has {sorted(features.mm_hashes)}",
                field=f"features.{name}",
            )
        for modality, items in lists.items():
            hashes = features.mm_hashes[modality]
            if len(items) != len(hashes):
                raise RequestError(
                    f"it has {len(items)} items, mm_hashes has {len(hashes)}", field=f"features.{name}.{modality}"
                )
    for modality, spans in features.mm_placeholders.items():
        field = f"features.mm_placeholders.{modality}"
        for index, span in enumerate(spans):
            if span.offset + span.length > prompt_tokens:
                raise RequestError(
                    f"tokens {span.offset} to {span.offset + span.length} are beyond the prompt's {prompt_tokens}",
                    field=field,
                    index=index,
                )
        for index, (one, two) in enumerate(pairwise(spans), start=1):
            if two.offset < one.offset + one.length:
                raise RequestError(
                    "it overlaps the placeholder before it, or stands before it", field=field, index=index
                )


def named_field(text: str) -> tuple[str, str | None]:
    """What msgspec says is wrong, and where: `... - at `$.a.b[0]``, or `... - at `key` in `$.a.b``."""
    found = _PLACE.fullmatch(text)
    return (text, None) if found is None else (found[1], found[2] or None)
