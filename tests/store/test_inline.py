"""Images inside their references: no place, no other image than the one that was put, and every store reads them."""

from __future__ import annotations

import pickle
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filmroll.errors import ConfigError, FilmrollError, ImageDamagedError, ImageLimitError, OutsideStoreError
from filmroll.image import MAX_INLINE_BYTES, ImageRef
from filmroll.store import Lease, Limits, Manifest, Store, open_store
from filmroll.store.ingest.canonical import Canonical
from tests.store.pictures import noise


@pytest.fixture
def inline() -> Store:
    return open_store("inline:")


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_what_was_put_is_read(width: int, height: int) -> None:
    inline, picture = open_store("inline:"), noise(width, height, seed=width)
    ref = inline.put(picture)
    assert (ref.width, ref.height) == (width, height)
    assert ref.uri.startswith("data:image/png;base64,")
    assert inline.put(picture) == ref
    assert inline.put(inline.read(ref)) == ref
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(ref), type=ImageRef) == ref


def test_every_store_reads_it_and_none_writes_it_down(inline: Store, tmp_path: Path) -> None:
    ref = inline.put(noise(20, 10, seed=1))
    stored = open_store(tmp_path / "images")
    assert stored.read(ref) == inline.read(ref) == pickle.loads(pickle.dumps(inline)).read(ref)
    assert stored.put(stored.read(ref)).sha256 == ref.sha256
    Manifest(stored, "run").keep("step", [ref])
    assert Manifest(stored, "run").images() == frozenset()
    assert list(inline.shelf.items()) == []


def test_it_holds_the_image_that_it_says(inline: Store) -> None:
    ref, other = inline.put(noise(20, 10, seed=1)), inline.put(noise(20, 10, seed=2))
    for forged, error in [
        (msgspec.structs.replace(ref, uri=other.uri), ImageDamagedError),
        (msgspec.structs.replace(ref, nbytes=ref.nbytes + 1), ImageDamagedError),
        (msgspec.structs.replace(ref, sha256=other.sha256), ImageDamagedError),
        (msgspec.structs.replace(ref, uri=ref.uri[:-1]), ImageDamagedError),
        (msgspec.structs.replace(ref, uri=ref.uri + "\n"), ImageDamagedError),
        (msgspec.structs.replace(ref, uri=ref.uri.replace("base64,", "base64,é")), ImageDamagedError),
        (msgspec.structs.replace(ref, media_type="image/jpeg"), OutsideStoreError),
        (msgspec.structs.replace(ref, uri="data:text/html;base64,AAAA"), OutsideStoreError),
        (msgspec.structs.replace(ref, uri="file:///etc/passwd"), OutsideStoreError),
    ]:
        with pytest.raises(error):
            inline.read(forged)


@given(st.text())
def test_any_other_uri_is_refused(text: str) -> None:
    inline = open_store("inline:")
    ref = inline.put(noise(2, 2, seed=1))
    for uri in ("data:" + text, ref.uri[:30] + text):
        with pytest.raises(FilmrollError):
            inline.read(msgspec.structs.replace(ref, uri=uri))


def test_limits(inline: Store, tmp_path: Path) -> None:
    ref = inline.put(noise(20, 10, seed=1))
    with pytest.raises(ImageLimitError):
        open_store(tmp_path, Limits(max_bytes=ref.nbytes - 1)).read(ref)
    with pytest.raises(ImageLimitError, match="use a store that writers and readers share"):
        inline.write(Canonical(bytes(MAX_INLINE_BYTES + 1), "0" * 64, "image/png", 1, 1))
    longest = inline.write(Canonical(bytes(MAX_INLINE_BYTES), "0" * 64, "image/jpeg", 1, 1))
    assert msgspec.convert(msgspec.to_builtins(longest), ImageRef) == longest
    with pytest.raises(ConfigError, match="nothing to cache"):
        open_store("inline:", cache=tmp_path)


def test_it_has_no_place_and_needs_none(inline: Store) -> None:
    ref = inline.put(noise(20, 10, seed=1))
    Manifest(inline, "run").keep("step", [ref])
    assert Manifest(inline, "run").labels() == []
    with Lease(inline, "somebody") as lease:
        lease.hold([ref])
