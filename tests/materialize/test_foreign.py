"""References of other systems: read where their files lie, and everything checked that they say."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from filmroll.engine.images.resolve import Resolved
from filmroll.engine.images.resolver import Resolver
from filmroll.engine.statistics import Statistics
from filmroll.errors import (
    DescriptorError,
    FilmrollError,
    FingerprintError,
    GridError,
    ImageDamagedError,
    ImageFormatError,
    ImageLimitError,
    ImageNotFoundError,
    OutsideStoreError,
    RequestError,
    UnknownFamilyError,
)
from filmroll.families.qwen_vl import QwenVL
from filmroll.image import ImageRef
from filmroll.materialize import Materializer, Receipt
from filmroll.store.ingest.canonical import Limits
from filmroll.store.inline import data_uri
from filmroll.wire.foreign import ForeignDescriptor
from filmroll.wire.generate import Features, GenerateRequest, Placeholder, SamplingParams
from filmroll.wire.reference import read_descriptor, read_reference, write_reference
from tests.materialize.conftest import CountingStore
from tests.store.pictures import encode, picture
from tests.wire.variants import DESCRIPTOR, INLINE, descriptors, references


class Upstream:
    """A folder as another system writes it: the store's own, with one file in it, named by a cut hash."""

    def __init__(self, store: CountingStore, family: QwenVL, ours: ImageRef) -> None:
        self.store, self.family, self.ours = store, family, ours
        self.described = family.describe(ours)
        self.data = store.read(ours)
        self.path = store.root / f"{ours.sha256[:16]}.png"
        self.path.write_bytes(self.data)
        Path(ours.uri.removeprefix("file://")).unlink()
        self.loader = Materializer(store, family)

    def references(self, **changes: Any) -> dict[str, str]:
        said = {"fingerprint": self.family.fingerprint, "payload": self.described.payload} | changes
        return {name: self._inside(text) for name, text in references(self.ours, **said).items()}

    def descriptors(self, **changes: Any) -> dict[str, Any]:
        made = descriptors(self.ours, **({"payload": self.described.payload} | changes))
        del made["Kimi's"], made["by reference"]
        text = json.dumps(made).replace(DESCRIPTOR.layout_fingerprint, self.family.fingerprint)
        return dict(json.loads(text.replace(INLINE.image.uri, data_uri("image/png", self.data))))

    def _inside(self, text: str) -> str:
        """The example's image inside the reference, replaced by the one of this folder."""
        read = read_reference(text)
        if not isinstance(read, ForeignDescriptor) or not read.locator.startswith("data:"):
            return text
        key = "raw_image_data"
        said = {
            "family": read.family,
            "fingerprint": read.layout_fingerprint,
            "mm_hash": self.ours.sha256[:32],
            "payload": self.described.payload,
            key: data_uri("image/png", self.data),
        }
        return "mmraw:" + json.dumps(said)


@pytest.fixture
def upstream(store: CountingStore, family: QwenVL, put: Any) -> Upstream:
    return Upstream(store, family, put(1, 96, 64))


def test_every_form_gives_the_same_pixels_as_ours(upstream: Upstream) -> None:
    claims = [read_reference(text) for text in upstream.references().values()]
    claims += [read_descriptor(value) for value in upstream.descriptors().values()]
    loaded = upstream.loader.load(claims)
    count = len(claims)
    assert count == 12
    assert loaded.receipt == Receipt(referenced=count, verified=count, decoded=count)
    assert len({id(one) for one in loaded.pictures}) == 1
    whole = upstream.loader.complete(claims[0])
    assert whole.image.uri == upstream.path.as_uri()
    assert msgspec.structs.replace(whole, image=upstream.ours) == upstream.described
    # What was completed is a descriptor like any other: it travels in our own form, and is read again.
    upstream.loader.load([read_reference(write_reference(whole))])


def test_the_fingerprint_of_the_oldest_references_is_known(upstream: Upstream) -> None:
    numbers = "max_pixels=1048576:merge_size=2:min_pixels=1024:patch_size=16:temporal_patch_size=2"
    oldest = hashlib.sha256(f"image-layout:v1:qwen_vl:{numbers}".encode()).hexdigest()[:32]
    upstream.loader.load([read_reference(text) for text in upstream.references(fingerprint=oldest).values()])


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"family": "kimi_k25"}, UnknownFamilyError),
        ({"modality": "video"}, FingerprintError),
        ({"fingerprint": "0" * 32}, FingerprintError),
        ({"payload": {"image_grid_thw": [[1, 6, 4]]}}, GridError),
        ({"payload": {}}, GridError),
        ({"mm_hash": "0" * 32}, ImageDamagedError),
    ],
)
def test_every_claim_is_compared(upstream: Upstream, changes: dict[str, Any], error: type[FilmrollError]) -> None:
    for name, text in upstream.references(**changes).items():
        if "its image" not in name:
            with pytest.raises(error) as caught:
                upstream.loader.load([read_reference(upstream.references()["A"]), read_reference(text)])
            assert caught.value.index == 1


def test_other_bytes_under_a_short_name_are_found_out(upstream: Upstream, put: Any) -> None:
    other = upstream.store.read(put(2, 96, 64))
    upstream.path.write_bytes(other)
    for text in upstream.references(mm_hash=hashlib.sha256(other).hexdigest()[:32]).values():
        if "data:" not in text:
            with pytest.raises(ImageDamagedError, match="another hash than its name"):
                upstream.loader.load([read_reference(text)])


def test_it_is_found_in_our_own_place_by_its_whole_name(store: Any, family: QwenVL, put: Any) -> None:
    ours = put(1)
    said = {"kind": "prime_raw_mm_item", "family": "qwen_vl", "payload": family.describe(ours).payload}
    name = ours.uri.rpartition("/")[2]
    for place in ({"raw_image_id": name}, {"raw_image_uri": ours.uri}):
        assert Materializer(store, family).complete(read_descriptor(said | place)) == family.describe(ours)


@pytest.mark.parametrize(
    "locator",
    ["file:///etc/passwd", "../{name}", "{root}/../{name}", "{root}/sub/{name}", "file://host{path}", "http://x/{name}",
     "passwd", ".{name}", "{name}.png", "{path}", "sub/{name}", "file:{path}", "{uri}?x={name}"],
)  # fmt: skip
def test_nothing_outside_the_folder_is_opened(
    upstream: Upstream, locator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, uri = str(upstream.path), upstream.path.as_uri()
    locator = locator.format(name=upstream.path.name, path=path, uri=uri, root=uri.rpartition("/")[0])
    monkeypatch.setattr(upstream.store.shelf, "read", lambda *_: pytest.fail("something was opened"))
    with pytest.raises(OutsideStoreError) as caught:
        upstream.store.locate(locator)
    assert path not in caught.value.wire()["message"]


def test_a_link_a_folder_and_nothing_are_no_images(upstream: Upstream, tmp_path: Path) -> None:
    claim = read_reference(upstream.references()["D"])
    upstream.path.rename(tmp_path / "elsewhere.png")
    with pytest.raises(ImageNotFoundError):
        upstream.loader.load([claim])
    upstream.path.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(ImageDamagedError):
        upstream.loader.load([claim])
    upstream.path.unlink()
    upstream.path.mkdir()
    with pytest.raises(ImageDamagedError):
        upstream.loader.load([claim])


def test_limits_hold_and_only_canonical_images_are_read(store: Any, family: QwenVL) -> None:
    image, options = picture("RGBA", 64, 32, seed=1)
    data = encode(image, "PNG", **options)
    name = f"{hashlib.sha256(data).hexdigest()[:16]}.png"
    (store.root / name).parent.mkdir(parents=True, exist_ok=True)
    (store.root / name).write_bytes(data)
    said = {"kind": "prime_raw_mm_item", "family": "qwen_vl", "payload": {"image_grid_thw": [[1, 2, 4]]}}
    with pytest.raises(ImageFormatError, match="canonical"):
        Materializer(store, family).load([read_descriptor(said | {"raw_image_id": name})])
    small = CountingStore(store.root, Limits(max_bytes=len(data) - 1))
    with pytest.raises(ImageLimitError):
        small.locate(name)
    with pytest.raises(ImageLimitError):
        small.locate(data_uri("image/png", data))


def test_an_engine_resolves_them(upstream: Upstream) -> None:
    pad, tokens = upstream.family.placeholders.image, upstream.described.tokens

    def request(text: str, **changes: Any) -> GenerateRequest:
        features = Features(
            mm_hashes={"image": [changes.get("digest", upstream.ours.sha256[:32])]},
            mm_placeholders={"image": [Placeholder(1, changes.get("length", tokens))]},
            kwargs_data={"image": [text]},
        )
        return GenerateRequest([1, *[pad] * changes.get("length", tokens), 2], SamplingParams(), features=features)

    async def resolve(request: GenerateRequest) -> Resolved:
        async with resolver.visit() as visit:
            return await visit.resolve(request)

    resolver = Resolver({upstream.family.recipe: upstream.loader}, Statistics(CollectorRegistry()))
    for text in upstream.references().values():
        resolved = asyncio.run(resolve(request(text)))
        assert resolved.receipt.verified == 1
        noise = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)
        expected = upstream.family.pixels([noise], "uint8")
        np.testing.assert_array_equal(resolved.pictures[0].arrays["pixel_values"], expected["pixel_values"])
    text = upstream.references()["A"]
    for changes in ({"digest": upstream.ours.sha256}, {"length": tokens + 1}):
        with pytest.raises(RequestError):
            asyncio.run(resolve(request(text, **changes)))
    with pytest.raises(DescriptorError):
        asyncio.run(resolve(request("mmraw:v9:" + text[6:])))
    resolver.close()
