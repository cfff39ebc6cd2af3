"""The trainer's side of a vLLM under test: versions of the weights, and the logprobs that a trainer finds by each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from filmroll.engine.weights import write_weights
from filmroll.materialize import Materializer
from filmroll.materialize.feed import load_model
from filmroll.train.learning.forward import forward
from filmroll.train.loading.loader import Loader
from filmroll.wire.reference import read_reference
from filmroll.wire.training import LossWeights, MicroBatch, PlacedImage, TrainingSample
from tests.vllm.conversations import Body, Desk

DTYPES = {5: torch.bfloat16}
"""Versions that are written in other numbers than float32."""

ROWS = 32


class Trainer:
    """Version 0 is the checkpoint; every other is far from it, and always the same."""

    def __init__(self, desk: Desk, folder: Path) -> None:
        self.desk, self.folder = desk, folder
        self.model = cache(self._model)

    def write(self, version: int, *, like: int | None = None) -> Path:
        """Keep a version, or the weights of another under its number."""
        return write_weights(self.tensors(version if like is None else like), self.folder, version)

    def tensors(self, version: int) -> dict[str, torch.Tensor]:
        dtype = DTYPES.get(version, torch.float32)
        return {name: value.to(dtype) for name, value in self.model(version).state_dict().items()}

    def logprobs(self, version: int, asked: Sequence[tuple[Body, list[int]]]) -> list[list[float]]:
        """Of the tokens that an engine sampled after each request's, as the trainer's own forward has them."""
        family, model = self.desk.family, self.model(version)
        loader = Loader(Materializer(self.desk.store, family), model)
        found: list[list[float]] = []
        with torch.no_grad():
            for start in range(0, len(asked), ROWS):
                some = asked[start : start + ROWS]
                batch = loader.load(MicroBatch([[_sample(body, tokens)] for body, tokens in some]))
                logprobs = forward(model, family, batch).logprobs
                found += [one.tolist() for one in logprobs.split([len(tokens) for _, tokens in some])]
        return found

    def _model(self, version: int) -> Any:
        model = load_model(self.desk.model)
        generator = torch.Generator().manual_seed(version)
        dtype = DTYPES.get(version, torch.float32)
        with torch.no_grad():
            for parameter in model.parameters() if version else ():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(parameter.to(dtype))
        return model


def _sample(body: Body, tokens: list[int]) -> TrainingSample:
    ids = np.array([*body["token_ids"], *tokens], np.int32)
    sampled = np.arange(len(ids)) >= len(body["token_ids"])
    features = body.get("features")
    lists = [features[of]["image"] for of in ("kwargs_data", "mm_placeholders")] if features else [[], []]
    return TrainingSample(
        name="asked",
        token_ids=ids,
        trained=sampled.astype(np.uint8),
        logprobs=np.zeros(len(ids), np.float32),
        temperatures=np.where(sampled, np.float32(body["sampling_params"]["temperature"]), np.float32(0)),
        versions=np.where(sampled, 0, -1).astype(np.int32),
        advantage=0.0,
        weights=LossWeights(rl=1.0),
        images=[PlacedImage(read_reference(text), span["offset"]) for text, span in zip(*lists, strict=True)],
    )
