"""One server for each of two models, for all tests that can share it: starts take most of the time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from filmroll.families import load_family
from filmroll.store import Store, open_store
from tests.store.servers.endpoint import BUCKET, S3Server
from tests.store.servers.moto import started_moto
from tests.vllm.conversations import Desk
from tests.vllm.serving import CONNECTED, Server, serving
from tests.vllm.tiny_models import MODELS

STARTING_THEIR_OWN = {"test_attacks", "test_run", "test_stock", "test_weights", "test_weights_of_models"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of two workers, let one have all that share servers: each would start its own otherwise."""
    for item in (item for item in items if item.path.parent == Path(__file__).parent):
        group = item.path.stem if item.path.stem in STARTING_THEIR_OWN else "sharing"
        item.add_marker(pytest.mark.xdist_group(group))


def desk_of(model: Path, folder: Path, store: Store, *, start: tuple[int, ...] = (), end: tuple[int, ...] = ()) -> Desk:
    outside = folder / "outside"
    outside.mkdir()
    return Desk(
        model=model,
        store_dir=folder / "images",
        store=store,
        family=load_family(model, backend="torchvision"),
        pillow=load_family(model),
        outside=outside,
        start=start,
        end=end,
    )


@pytest.fixture(scope="session")
def desk(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Qwen3-VL, its images in a folder."""
    folder = tmp_path_factory.mktemp("tiny")
    config = json.loads((tiny_model / "config.json").read_text())
    start, end = ((config[f"vision_{side}_token_id"],) for side in ("start", "end"))
    return desk_of(tiny_model, folder, open_store(folder / "images"), start=start, end=end)


@pytest.fixture(scope="session")
def vllm(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It keeps no decoded images of its own, so what is not decoded again is in vLLM's cache."""
    log = tmp_path_factory.mktemp("server") / "vllm.log"
    told = {"store": str(desk.store_dir), "cache_bytes": 0}
    with serving(desk.model, desk.outside, log, told, environment=CONNECTED) as server:
        yield server


@pytest.fixture(scope="session")
def bucket() -> Iterator[S3Server]:
    """A server of buckets, which this process finds, too."""
    with started_moto() as server, pytest.MonkeyPatch.context() as environment:
        for name, value in server.environment.items():
            environment.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def tiled_desk(bucket: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Idefics3, which cuts pictures into tiles, its images in a bucket."""
    folder = tmp_path_factory.mktemp("tiled")
    MODELS["idefics3"](folder / "model")
    # As released, it writes the space that a model says first: no turn could be extended as it was said.
    template = folder / "model" / "chat_template.jinja"
    template.write_text(template.read_text().replace("' ' + part.text", "part.text"))
    return desk_of(folder / "model", folder, open_store(f"s3://{BUCKET}/images"))


@pytest.fixture(scope="session")
def tiled_vllm(tiled_desk: Desk, bucket: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "vllm.log"
    told = {"store": f"s3://{BUCKET}/images"}
    environment = CONNECTED | bucket.environment
    with serving(tiled_desk.model, tiled_desk.outside, log, told, environment=environment) as server:
        yield server


@pytest.fixture(params=["qwen_vl in a folder", "idefics3 in a bucket"])
def served(request: pytest.FixtureRequest) -> tuple[Server, Desk]:
    """Either of the two."""
    server, desk = ("vllm", "desk") if request.param.startswith("qwen") else ("tiled_vllm", "tiled_desk")
    return request.getfixturevalue(server), request.getfixturevalue(desk)
