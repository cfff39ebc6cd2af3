"""A tiny model, a store with pictures, and requests about them: made once a session."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from filmroll.engine.embedded.engine import EmbeddedEngine
from filmroll.families import Family, load_family
from filmroll.image import ImageRef
from filmroll.materialize.feed import load_model, suppress
from filmroll.materialize.materializer import Materializer
from filmroll.render import Renderer, load_renderer
from filmroll.store import open_store
from filmroll.store.store import Store
from filmroll.wire.generate import (
    Features,
    GenerateAnswer,
    GenerateRequest,
    Placeholder,
    SamplingParams,
)
from filmroll.wire.reference import read_reference, write_reference
from tests.conftest import Served
from tests.plain import plain_inputs

SIZES = ((32, 32), (64, 32), (100, 60), (48, 80), (96, 96))
"""Width and height: from one placeholder token to nine."""


@dataclass(frozen=True)
class Desk:
    """What tests make requests with."""

    model_dir: Path
    store_dir: Path
    family: Family
    store: Store
    start: int
    end: int

    def picture(self, seed: int, size: tuple[int, int] | None = None) -> ImageRef:
        width, height = size or SIZES[seed % len(SIZES)]
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        return self.store.put(pixels)

    def request(
        self, pictures: Sequence[ImageRef] = (), *, words: int = 5, seed: int = 0, **params: Any
    ) -> GenerateRequest:
        """Random words before, between and after the pictures."""
        rng = np.random.default_rng(seed)
        descriptors = [self.family.describe(picture) for picture in pictures]
        tokens: list[int] = []
        spans = []
        for descriptor in descriptors:
            tokens += [*rng.integers(0, 200, words).tolist(), self.start]
            spans.append(Placeholder(len(tokens), descriptor.tokens))
            tokens += [self.family.placeholders.image] * descriptor.tokens + [self.end]
        tokens += rng.integers(0, 200, words).tolist()
        features = Features(
            mm_hashes={"image": [picture.sha256 for picture in pictures]},
            mm_placeholders={"image": spans},
            kwargs_data={"image": [write_reference(descriptor) for descriptor in descriptors]},
        )
        return GenerateRequest(tokens, SamplingParams(**params), features=features if pictures else None)


@pytest.fixture(scope="session")
def desk(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    store_dir = tmp_path_factory.mktemp("store")
    family = load_family(tiny_model)
    config = load_model(tiny_model).config
    return Desk(
        model_dir=tiny_model,
        store_dir=store_dir,
        family=family,
        store=open_store(str(store_dir)),
        start=config.vision_start_token_id,
        end=config.vision_end_token_id,
    )


@pytest.fixture(scope="session")
def engine(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedEngine]:
    """Tests that change its weights put the first ones back as version 0."""
    with open_engine(desk, tmp_path_factory.mktemp("weights")) as engine:
        yield engine


def open_engine(desk: Desk, weights_dir: Path | None = None, **options: Any) -> EmbeddedEngine:
    materializer = Materializer(desk.store, desk.family)
    return EmbeddedEngine(desk.model_dir, desk.family, materializer, weights_dir=weights_dir, name="tiny", **options)


class Asker:
    """Sends requests to an engine from an event loop of its own, all at once."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        self.engine = engine

    def all(self, requests: Sequence[GenerateRequest]) -> list[GenerateAnswer]:
        async def together() -> list[GenerateAnswer]:
            return await asyncio.gather(*map(self.engine.generate, requests))

        return asyncio.run(together())

    def one(self, request: GenerateRequest) -> GenerateAnswer:
        return self.all([request])[0]


@pytest.fixture
def ask(engine: EmbeddedEngine) -> Asker:
    return Asker(engine)


class Oracle:
    """What the model says to a whole sequence at once: no batch, no cache, no engine."""

    def __init__(self, desk: Desk) -> None:
        self.model = load_model(desk.model_dir)
        self.desk = desk

    def logprobs(self, request: GenerateRequest, sampled: Sequence[int]) -> torch.Tensor:
        references = request.features.kwargs_data["image"] if request.features else []
        images = Materializer(self.desk.store, self.desk.family).load([read_reference(text) for text in references])
        rows = [[*request.token_ids, *sampled]]
        with torch.no_grad():
            logits = self.model(**plain_inputs(self.desk.family, rows, images.arrays)).logits
        temperature = request.sampling_params.temperature or 1
        for token, bias in (request.sampling_params.logit_bias or {}).items():
            logits[..., token] += bias
        before = suppress(logits, self.desk.family)[0, len(request.token_ids) - 1 : -1] / temperature
        return torch.log_softmax(before, -1).gather(-1, torch.tensor(sampled)[:, None])[:, 0]

    def difference(self, request: GenerateRequest, answer: GenerateAnswer) -> float:
        """The largest between the answer's logprobs and the model's own."""
        choice = answer.choices[0]
        assert choice.logprobs is not None
        assert [item.token_id for item in choice.logprobs.content] == choice.token_ids
        reported = torch.tensor([item.logprob for item in choice.logprobs.content])
        return float((reported - self.logprobs(request, choice.token_ids)).abs().max())


@pytest.fixture(scope="session")
def oracle(desk: Desk) -> Oracle:
    return Oracle(desk)


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def writer(served: Served, tiny_model: Path) -> Renderer:
    return load_renderer(tiny_model, open_store(served.store))
