"""A digest in a reference's place: for what the engine has verified lately, and for nothing else."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from filmroll.engine.embedded.engine import EmbeddedEngine
from filmroll.engine.images.remembered import Remembered, digest_of
from filmroll.engine.statistics import Statistics
from filmroll.errors import FilmrollError, ImageNotFoundError, PlacementError, UnknownReferenceError
from filmroll.wire.generate import GenerateAnswer, GenerateRequest
from tests.engine.conftest import open_engine

HASHES = "features.mm_hashes.image"


@pytest.fixture
def fresh(desk: Any) -> Iterator[EmbeddedEngine]:
    """An engine that has seen nothing."""
    with open_engine(desk) as engine:
        yield engine


def ask(engine: EmbeddedEngine, request: GenerateRequest) -> GenerateAnswer:
    return asyncio.run(engine.generate(request))


def by_digest(request: GenerateRequest, *slots: int, digest: Any = digest_of) -> GenerateRequest:
    """The same request, with digests in these slots."""
    features = request.features
    assert features is not None
    assert features.kwargs_data is not None
    texts = list(features.kwargs_data["image"])
    hashes = list(features.mm_hashes["image"])
    for slot in slots:
        hashes[slot], texts[slot] = digest(texts[slot]), None
    changed = msgspec.structs.replace(features, mm_hashes={"image": hashes}, kwargs_data={"image": texts})
    return msgspec.structs.replace(request, features=changed)


def test_what_was_seen_may_be_sent_by_digest(desk: Any, fresh: EmbeddedEngine) -> None:
    request = desk.request([desk.picture(4000), desk.picture(4001), desk.picture(4000)], temperature=0, max_tokens=4)
    with pytest.raises(UnknownReferenceError) as caught:
        ask(fresh, by_digest(request, 1))
    assert (caught.value.status, caught.value.code) == (404, "reference_unknown")
    assert (caught.value.field, caught.value.index) == (HASHES, 1)
    whole = ask(fresh, request)
    for slots in ((1,), (0, 2), (0, 1, 2)):
        answer = ask(fresh, by_digest(request, *slots))
        assert answer.choices[0].token_ids == whole.choices[0].token_ids
        assert answer.choices[0].logprobs == whole.choices[0].logprobs
        assert answer.receipt == whole.receipt
    everything = by_digest(request, 0, 1, 2)
    features = msgspec.structs.replace(everything.features, kwargs_data=None)
    assert ask(fresh, msgspec.structs.replace(everything, features=features)).receipt == whole.receipt
    lines = fresh.statistics.text().splitlines()
    assert "filmroll_engine_reference_misses_total 1.0" in lines
    assert "filmroll_engine_reference_hits_total 9.0" in lines


def test_the_digest_of_an_image_buys_nothing(desk: Any, fresh: EmbeddedEngine) -> None:
    picture = desk.picture(4010)
    request = desk.request([picture], max_tokens=1)
    ask(fresh, request)
    guesses = [picture.sha256, picture.sha256[:32], "", "0" * 64, picture.uri, picture.sha256.upper()]
    for guess in guesses:
        with pytest.raises(UnknownReferenceError):
            ask(fresh, by_digest(request, 0, digest=lambda _, guess=guess: guess))


def test_what_was_refused_is_not_remembered(desk: Any, fresh: EmbeddedEngine) -> None:
    request = desk.request([desk.picture(4020)], max_tokens=1)
    text = request.features.kwargs_data["image"][0].replace('"width":32', '"width":33')
    features = msgspec.structs.replace(request.features, kwargs_data={"image": [text]})
    forged = msgspec.structs.replace(request, features=features)
    for attempt in (forged, by_digest(forged, 0)):
        with pytest.raises(FilmrollError) as caught:
            ask(fresh, attempt)
    assert caught.value.code == "reference_unknown"


def test_a_digest_is_checked_like_the_reference_that_it_stands_for(desk: Any, fresh: EmbeddedEngine) -> None:
    """Placements are compared again, and the image has to be there where nobody keeps it."""
    picture = desk.picture(4030)
    request = desk.request([picture], max_tokens=1)
    ask(fresh, request)
    moved = by_digest(request, 0)
    shifted = msgspec.structs.replace(moved, token_ids=[5, *moved.token_ids])
    with pytest.raises(PlacementError):
        ask(fresh, shifted)
    with open_engine(desk) as engine:
        (text,) = request.features.kwargs_data["image"]
        engine.resolver.remembered.add({digest_of(text): text})
        place = desk.store_dir / picture.sha256[:2] / f"{picture.sha256}.png"
        aside = place.with_suffix(".aside")
        place.rename(aside)
        try:
            with pytest.raises(ImageNotFoundError):
                ask(engine, moved)
        finally:
            aside.rename(place)
        assert ask(engine, moved).receipt.consumed == 1


def test_its_memory_is_bounded_and_the_first_is_forgotten_first() -> None:
    remembered = Remembered(Statistics(CollectorRegistry()), limit=1000)
    texts = [f"mmraw:{number:094}" for number in range(15)]
    remembered.add({digest_of(text): text for text in texts})
    assert [remembered.knows(digest_of(text)) for text in texts] == [False] * 5 + [True] * 10
    assert remembered.text(hashlib.sha256(texts[-1].encode()).hexdigest()) == texts[-1]
    remembered.add({"0" * 64: "mmraw:" + "x" * 1000})
    assert [remembered.knows(digest_of(text)) for text in texts] == [False] * 5 + [True] * 10
