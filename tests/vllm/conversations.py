"""Conversations about pictures, as requests: with references, with tensors, with content parts."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from filmroll.families import Family
from filmroll.image import ImageRef
from filmroll.store import Store
from filmroll.wire.reference import write_reference

SIZES = ((32, 32), (100, 60), (64, 32), (48, 80), (250, 190))
"""Width and height, most of them resized."""

Body = dict[str, Any]


@dataclass(frozen=True)
class Desk:
    """What requests are made with."""

    model: Path
    store_dir: Path
    store: Store
    family: Family
    """Resizes as vLLM's own image processor does, with torchvision."""
    pillow: Family
    """Resizes as the embedded engine and the trainer do."""
    outside: Path
    """A folder beside the store, whose files vLLM is told that it may read."""
    start: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    """What the model's chat writes before and after a picture."""

    def picture(self, seed: int) -> ImageRef:
        width, height = SIZES[seed % len(SIZES)]
        return self.store.put(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))

    def request(
        self, pictures: Sequence[ImageRef], *, seed: int = 0, family: Family | None = None, **params: Any
    ) -> Body:
        """Random words before, between and after the pictures, and greedy sampling."""
        rng = np.random.default_rng(seed)
        descriptors = [(family or self.family).describe(picture) for picture in pictures]
        tokens: list[int] = []
        spans = []
        for descriptor in descriptors:
            tokens += [*rng.integers(0, 200, 4).tolist(), *self.start]
            spans.append({"offset": len(tokens), "length": descriptor.tokens})
            tokens += [*self.family.expansion(descriptor).tolist(), *self.end]
        tokens += rng.integers(0, 200, 4).tolist()
        body = {"token_ids": tokens, "sampling_params": {"max_tokens": 6, "temperature": 0, "logprobs": 1, **params}}
        if not pictures:
            return body
        return body | {
            "features": {
                "mm_hashes": {"image": [picture.sha256 for picture in pictures]},
                "mm_placeholders": {"image": spans},
                "kwargs_data": {"image": [write_reference(descriptor) for descriptor in descriptors]},
            }
        }

    def after(self, body: Body, said: Sequence[int], more: Body) -> Body:
        """The conversation that goes on: what was asked, what was said, and what is asked then."""
        start = len(body["token_ids"]) + len(said)
        features = {
            name: {"image": [*body["features"][name]["image"], *more["features"][name]["image"]]}
            for name in ("mm_hashes", "kwargs_data")
        }
        moved = [span | {"offset": start + span["offset"]} for span in more["features"]["mm_placeholders"]["image"]]
        places = {"image": [*body["features"]["mm_placeholders"]["image"], *moved]}
        tokens = [*body["token_ids"], *said, *more["token_ids"]]
        return more | {"token_ids": tokens, "features": features | {"mm_placeholders": places}}

    @contextmanager
    def hidden(self, picture: ImageRef) -> Iterator[None]:
        """The stored image is not there meanwhile."""
        place = Path(unquote(urlsplit(picture.uri).path))
        aside = self.store_dir.with_name("aside")
        place.rename(aside)
        try:
            yield
        finally:
            aside.rename(place)

    def with_parts(self, body: Body, pictures: Sequence[ImageRef]) -> Body:
        """The same conversation as a client of ours asks stock vLLM: where the images lie, and which they are."""
        parts = self.with_urls(body, [picture.uri for picture in pictures])
        for part, picture in zip(parts["content_parts"], pictures, strict=True):
            part["uuid"] = f"{picture.sha256}-{self.family.recipe}"
        return parts

    def with_urls(self, body: Body, urls: Sequence[str]) -> Body:
        """The same conversation with one pad for each image, and a url."""
        logical, end = [], 0
        for span in body["features"]["mm_placeholders"]["image"]:
            logical += [*body["token_ids"][end : span["offset"]], self.family.placeholders.pad]
            end = span["offset"] + span["length"]
        parts = [{"type": "image_url", "url": url} for url in urls]
        return self.plain(body) | {"token_ids": [*logical, *body["token_ids"][end:]], "content_parts": parts}

    def ways(self, body: Body, pictures: Sequence[ImageRef]) -> dict[str, Body]:
        """Every way to say the same to vLLM."""
        return {
            "references": body,
            "stored": self.with_parts(body, pictures),
            "files": self.with_urls(body, [self.copied(picture) for picture in pictures]),
            "data": self.with_urls(body, [self.data_uri(picture) for picture in pictures]),
        }

    def copied(self, picture: ImageRef) -> str:
        """The url of a copy that is not the store's."""
        copy = self.outside / f"{picture.sha256}.png"
        copy.write_bytes(self.store.read(picture))
        return copy.as_uri()

    def with_tensors(self, body: Body, features: Body) -> Body:
        """The same conversation with what vLLM's own renderer made of its images."""
        return self.plain(body) | {"features": features}

    def plain(self, body: Body) -> Body:
        """Without references; the plugin keeps vision tokens from being sampled, here the request does."""
        bias = {str(token): -1e9 for token in self.family.placeholders.unsampled}
        params = body["sampling_params"] | {"logit_bias": body["sampling_params"].get("logit_bias", {}) | bias}
        return {"token_ids": body["token_ids"], "sampling_params": params}

    def messages(self, turns: Sequence[Sequence[ImageRef | str]]) -> list[Body]:
        """A chat of the user's and the assistant's turns, its images inside it."""
        return [
            {
                "role": "assistant" if number % 2 else "user",
                "content": [
                    {"type": "text", "text": part}
                    if isinstance(part, str)
                    else {"type": "image_url", "image_url": {"url": self.data_uri(part)}}
                    for part in turn
                ],
            }
            for number, turn in enumerate(turns)
        ]

    def data_uri(self, picture: ImageRef) -> str:
        return f"data:{picture.media_type};base64,{base64.b64encode(self.store.read(picture)).decode()}"
