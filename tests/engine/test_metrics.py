"""What an engine counts: the documented names, in Prometheus' text format, and numbers that agree with the facts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from filmroll.engine.embedded.engine import EmbeddedEngine
from filmroll.engine.statistics import Statistics
from filmroll.errors import FilmrollError
from filmroll.materialize.features import Features
from filmroll.materialize.materializer import Materializer
from tests.engine.conftest import open_engine

DOCUMENT = Path(__file__).parents[2] / "docs" / "vllm.md"
PREFIX = "filmroll_engine_"


def values(statistics: Statistics) -> dict[str, float]:
    """By name, without its prefix, and label."""
    return {
        sample.name.removeprefix(PREFIX) + "".join(f":{value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(statistics.text())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@pytest.fixture
def engine(desk: Any) -> Iterator[EmbeddedEngine]:
    with open_engine(desk) as engine:
        yield engine


def test_every_name_is_documented_and_no_other() -> None:
    registry = CollectorRegistry()
    Statistics(registry, runs_model=True)
    shown = {
        (family.name + "_total" if family.type == "counter" else family.name): family.type
        for family in registry.collect()
    }
    rows = re.findall(rf"^\| `({PREFIX}\w+)` \| (\w+) \|", DOCUMENT.read_text(), re.MULTILINE)
    assert dict(rows) == shown
    assert len(rows) == len(shown)


def test_what_happened_is_what_is_counted(desk: Any, engine: EmbeddedEngine) -> None:
    pictures = [desk.picture(5000 + number) for number in range(3)]
    asyncio.run(engine.generate(desk.request([*pictures, pictures[0]], max_tokens=3)))
    asyncio.run(engine.generate(desk.request(pictures[:1], max_tokens=2)))
    found = values(engine.statistics)
    assert found["requests_total"] == 2
    assert (found["generated_tokens_total"], found["weights_version"]) == (5, 0)
    for name in ("referenced", "verified", "decoded", "consumed"):
        assert found[f"images_{name}_total"] == 5
    assert (found["image_cache_misses_total"], found["image_cache_hits_total"]) == (3, 2)
    assert found["image_read_bytes_total"] == sum(picture.nbytes for picture in pictures)
    assert found["image_read_seconds_count"] == found["image_decode_seconds_count"] == 3
    assert 0 < found["image_decode_seconds_sum"] < 60
    counts = engine.materializer.cache_counts()
    assert found["image_cache_bytes"] == counts.nbytes > 0
    for name in ("requests_in_flight", "requests_waiting", "pixel_bytes_in_flight"):
        assert found[name] == 0


def test_what_is_refused_is_counted_by_its_code(desk: Any, engine: EmbeddedEngine) -> None:
    request = desk.request([desk.picture(5010)], max_tokens=2)
    for _ in range(2):
        broken = desk.request([desk.picture(5010)], max_tokens=2)
        broken.features.mm_hashes["image"][0] = "0" * 64
        with pytest.raises(FilmrollError):
            asyncio.run(engine.generate(broken))
    request.token_ids[0] = desk.family.placeholders.image
    with pytest.raises(FilmrollError):
        asyncio.run(engine.generate(request))
    found = values(engine.statistics)
    assert (found["rejected_total:request"], found["rejected_total:placement"]) == (2, 1)
    assert found["requests_total"] == 3
    assert found["images_referenced_total"] == 0


def test_bytes_in_the_cache_go_down_again(desk: Any) -> None:
    each = 96 * 96 * 3
    materializer = Materializer(desk.store, desk.family, cache_bytes=3 * each)
    with EmbeddedEngine(desk.model_dir, desk.family, materializer) as engine:
        for number in range(6):
            asyncio.run(engine.generate(desk.request([desk.picture(5020 + number, (96, 96))], max_tokens=1)))
            assert values(engine.statistics)["image_cache_bytes"] == materializer.cache_counts().nbytes <= 3 * each


def test_files_of_features_are_counted_by_what_became_of_them(desk: Any, tmp_path: Path) -> None:
    request = desk.request([desk.picture(5030)], max_tokens=1)
    for expected in ({"absent": 1, "written": 1}, {"hit": 1}):
        features = Features(tmp_path / "features", desk.family)
        materializer = Materializer(desk.store, desk.family, features=features)
        with EmbeddedEngine(desk.model_dir, desk.family, materializer) as engine:
            asyncio.run(engine.generate(request))
            features.flush()
            found = values(engine.statistics)
            assert {name: found[f"feature_files_total:{name}"] for name in expected} == expected
    # And a request may name the file.
    text = str(features.reference(request.features.mm_hashes["image"][0]))
    request.features.kwargs_data["image"][0] = text
    with EmbeddedEngine(desk.model_dir, desk.family, materializer) as engine:
        assert asyncio.run(engine.generate(request)).receipt.consumed == 1
        request.features.kwargs_data["image"][0] = text[:-1] + ("0" if text[-1] != "0" else "1")
        request.features.mm_hashes["image"][0] = request.features.kwargs_data["image"][0].rpartition(":")[2]
        with pytest.raises(FilmrollError) as caught:
            asyncio.run(engine.generate(request))
    assert (caught.value.status, caught.value.field, caught.value.index) == (404, "features.kwargs_data.image", 0)
