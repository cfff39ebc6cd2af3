"""Files of features: the same levels, or they are passed over and the image is decoded; no error, nothing wrong."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from filmroll.errors import FilmrollError, FingerprintError, GridError, ImageNotFoundError, ReferenceFormatError
from filmroll.families.qwen_vl import QwenVL
from filmroll.image import ImageRef
from filmroll.materialize import Materializer, features
from filmroll.materialize.features import KIND, Features, described
from filmroll.materialize.watch import Outcome, Watch
from filmroll.wire.feature_reference import FeatureReference, read_feature_reference

Put = Callable[..., ImageRef]


class Counting(Watch):
    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.decodes = 0

    def decoded(self, seconds: float) -> None:
        self.decodes += 1

    def features(self, outcome: Outcome, files: int = 1) -> None:
        self.outcomes[outcome] += files


class Reader:
    """A process of its own, as far as caches go."""

    def __init__(self, store: Any, family: QwenVL, folder: Path, **options: Any) -> None:
        self.features = Features(folder, family, **options)
        self.materializer = Materializer(store, family, features=self.features)
        self.counts = Counting()
        self.materializer.report_to(self.counts)

    def load(self, image: ImageRef) -> dict[str, Any]:
        (picture,) = self.materializer.load([self.materializer.family.describe(image)]).pictures
        self.features.flush()
        return picture.arrays


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "features"


@pytest.fixture
def reader(store: Any, family: QwenVL, folder: Path) -> Callable[..., Reader]:
    return lambda **options: Reader(store, options.pop("family", family), folder, **options)


def the_file(folder: Path) -> Path:
    (found,) = folder.rglob("*.msgpack")
    return found


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, array in other.items():
        np.testing.assert_array_equal(one[name], array)
        assert one[name].dtype == array.dtype
        assert not one[name].flags.writeable


def test_what_one_process_made_another_reads_without_decoding(
    reader: Callable[..., Reader], store: Any, put: Put
) -> None:
    first, second, image = reader(), reader(), put(1, 96, 64)
    made = first.load(image)
    assert (first.counts.outcomes, first.counts.decodes) == ({"absent": 1, "swept": 0, "written": 1}, 1)
    store.reads.clear()
    assert_same(second.load(image), made)
    assert (second.counts.outcomes, second.counts.decodes, store.reads) == ({"hit": 1}, 0, [])


def test_the_path_and_the_envelope_are_the_documented_ones(
    reader: Callable[..., Reader], family: QwenVL, folder: Path, put: Put
) -> None:
    one, image = reader(), put(1)
    one.load(image)
    file = the_file(folder)
    digest = image.sha256
    assert file.relative_to(folder).as_posix() == (
        f"v1/{KIND}/{one.features.fingerprint}/image/{digest[:2]}/{digest}.msgpack"
    )
    envelope = msgspec.msgpack.decode(file.read_bytes())
    payload = envelope.pop("payload")
    assert envelope.pop("payload_sha256") == hashlib.sha256(payload).hexdigest()
    assert set(envelope.pop("versions")) == {"filmroll", "pillow", "simplejpeg", "isal", "numpy"}
    assert envelope == {
        "schema_version": 1,
        "kind": KIND,
        "run_id": "features",
        "fingerprint": one.features.fingerprint,
        "modality": "image",
        "mm_hash": digest,
        "placeholder_length": family.describe(image).tokens,
    }
    said = msgspec.msgpack.decode(payload)
    assert msgspec.convert(said.pop("image"), ImageRef) == image
    assert set(said.pop("arrays")) == {"pixel_values", "image_grid_thw"}
    assert not said


def test_claims_about_an_image_that_was_read_from_a_file_are_checked(
    reader: Callable[..., Reader], family: QwenVL, put: Put
) -> None:
    image = put(1)
    reader().load(image)
    honest = family.describe(image)
    forged = msgspec.structs.replace(honest, payload={"image_grid_thw": [[1, 4, 2]]})
    for claim in (forged, msgspec.structs.replace(honest, image=msgspec.structs.replace(image, width=32))):
        with pytest.raises(GridError):
            reader().materializer.load([claim])
    elsewhere = msgspec.structs.replace(image, uri="file:///elsewhere.png")
    with pytest.raises(FilmrollError, match="place"):
        reader().materializer.load([msgspec.structs.replace(honest, image=elsewhere)])


# Damage of every kind


def rewritten(file: Path, **changes: Any) -> None:
    """The envelope says something else; whole in every other respect."""
    said = msgspec.msgpack.decode(file.read_bytes())
    file.write_bytes(msgspec.msgpack.encode(said | changes))


def repacked(file: Path, **changes: Any) -> None:
    """The payload says something else, and its sum is right."""
    payload = msgspec.msgpack.decode(msgspec.msgpack.decode(file.read_bytes())["payload"])
    packed = msgspec.msgpack.encode(payload | changes)
    rewritten(file, payload=packed, payload_sha256=hashlib.sha256(packed).hexdigest())


def array(*form: Any) -> Callable[[Path], None]:
    return lambda file: repacked(file, arrays={"pixel_values": form, "image_grid_thw": ["<i8", [1, 3], bytes(24)]})


def flip(position: int) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[position] ^= 1
        file.write_bytes(data)

    return change


def cut(to: int) -> Callable[[Path], None]:
    return lambda file: os.truncate(file, to)


def in_its_place(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        file.unlink()
        make(file)

    return change


def link(file: Path) -> None:
    elsewhere = file.with_suffix(".elsewhere")
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def large(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(features.MAX_FILE_BYTES + 1)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of the pixels": (flip(-1000), "damaged"),
    "a bit of the head": (flip(3), "damaged"),
    "cut in the middle": (cut(500), "damaged"),
    "cut to nothing": (cut(0), "damaged"),
    "no msgpack": (lambda file: file.write_bytes(b"\xc1" * 100), "damaged"),
    "nested without end": (lambda file: file.write_bytes(b"\x91" * 100_000), "damaged"),
    "a length without bytes": (lambda file: file.write_bytes(b"\xdf\xff\xff\xff\xff"), "damaged"),
    "another schema": (lambda file: rewritten(file, schema_version=2), "stale"),
    "another kind": (lambda file: rewritten(file, kind="vllm-mmitem"), "stale"),
    "another run": (lambda file: rewritten(file, run_id="other"), "stale"),
    "another fingerprint": (lambda file: rewritten(file, fingerprint="0" * 32), "stale"),
    "another modality": (lambda file: rewritten(file, modality="video"), "stale"),
    "another image": (lambda file: rewritten(file, mm_hash="0" * 64), "stale"),
    "other versions": (lambda file: rewritten(file, versions={"pillow": "1"}), "stale"),
    "a wrong placeholder": (lambda file: rewritten(file, placeholder_length=3), "stale"),
    "a wrong sum": (lambda file: rewritten(file, payload_sha256="0" * 64), "damaged"),
    "other arrays": (lambda file: repacked(file, arrays={"pixel_values": ["|u1", [2, 2], bytes(4)]}), "stale"),
    "objects": (array("|O", [1, 1], bytes(8)), "damaged"),
    "fewer bytes than its shape": (array("|u1", [8, 768], bytes(7)), "damaged"),
    "a shape below nothing": (array("|u1", [-5, 2], bytes(6)), "damaged"),
    "a shape without end": (array("|u1", [2**40, 2**40], b""), "damaged"),
    "a link": (link, "failed"),
    "a folder": (in_its_place(Path.mkdir), "failed"),
    "a FIFO": (in_its_place(os.mkfifo), "failed"),
    "larger than any": (large, "failed"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_whatever_is_wrong_with_a_file_it_is_passed_over_and_written_anew(
    reader: Callable[..., Reader], folder: Path, put: Put, name: str
) -> None:
    damage, outcome = DAMAGE[name]
    image = put(1, 96, 64)
    made = reader().load(image)
    damage(the_file(folder))
    mending = reader()
    assert_same(mending.load(image), made)
    # A folder is not only no file, none can be put in its place.
    assert (mending.counts.decodes, mending.counts.outcomes[outcome]) == (1, 2 if name == "a folder" else 1)
    after = reader()
    assert_same(after.load(image), made)
    assert after.counts.decodes == (1 if name == "a folder" else 0)


def test_a_file_of_another_size_of_the_same_digest_is_not_believed(
    reader: Callable[..., Reader], folder: Path, family: QwenVL, put: Put
) -> None:
    """The file's placeholder is compared with its size."""
    image = put(1, 96, 64)
    made = reader().load(image)
    repacked(the_file(folder), image=msgspec.to_builtins(msgspec.structs.replace(image, width=64)))
    mending = reader()
    assert_same(mending.load(image), made)
    assert mending.counts.outcomes["stale"] == 1


def test_every_bit_counts(reader: Callable[..., Reader], folder: Path, put: Put) -> None:
    """Whichever byte is damaged, the levels are right or the file is passed over."""
    image = put(1, 32, 32)
    made = reader().load(image)
    file = the_file(folder)
    data = file.read_bytes()
    one = reader()
    for position in range(0, len(data), 7):
        file.write_bytes(data[:position] + bytes([data[position] ^ 255]) + data[position + 1 :])
        found = one.features.find(image.sha256)
        if found is not None:
            assert found.image == image
            assert_same(found.arrays, made)


# Folders that fail


@pytest.fixture
def unwritable(folder: Path) -> Iterator[Path]:
    """Its place is taken by a file: whoever runs these tests, nothing can be written or read there."""
    folder.write_text("not a folder")
    yield folder
    folder.unlink()


def test_a_folder_that_fails_costs_nothing_but_the_decoding(
    reader: Callable[..., Reader], unwritable: Path, put: Put
) -> None:
    one = reader()
    assert one.load(put(1))["pixel_values"].size
    assert one.counts.decodes == 1
    assert one.counts.outcomes["failed"] >= 1
    assert "written" not in one.counts.outcomes


def test_a_full_disk_leaves_nothing_behind(
    reader: Callable[..., Reader], folder: Path, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def full(fd: int, data: Any) -> int:
        if stat.S_ISREG(os.fstat(fd).st_mode) and len(data) > 1000:
            raise OSError(28, "No space left on device")
        return write(fd, data)

    image = put(1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        one = reader()
        one.load(image)
        assert one.counts.outcomes["failed"] == 1
    assert not [path for path in folder.rglob("*") if path.is_file()]
    assert reader().load(put(1))["pixel_values"].size


def test_more_than_can_be_written_is_not_waited_for(
    reader: Callable[..., Reader], put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = reader()
    free = threading.Event()
    monkeypatch.setattr(one.features._shelf, "replace", lambda *_: free.wait(30))
    for seed in range(features.WAITING + 4):
        one.materializer.load([one.materializer.family.describe(put(100 + seed))])
    assert one.counts.outcomes["failed"] == 4
    free.set()
    one.features.flush()
    assert one.counts.outcomes["written"] == features.WAITING


# Their time to live


def test_what_nobody_reads_is_swept_and_images_never_are(
    store: Any, reader: Callable[..., Reader], put: Put, tmp_path: Path
) -> None:
    """Also where the folder is the store's own, `features/`."""
    folder = store.root / "features"
    kept, old, other = put(1), put(2), put(3)
    first = Reader(store, reader().materializer.family, folder)
    for image in (kept, old):
        first.load(image)
    long_ago = time.time() - 1000
    for path in store.root.rglob("*"):
        if path.is_file():
            os.utime(path, (long_ago, long_ago))
    # A hit makes it young again; another kind of file is nobody's business here.
    foreign = folder / "v1" / "vllm-mmitem" / "file"
    foreign.parent.mkdir(parents=True)
    foreign.touch()
    os.utime(foreign, (long_ago, long_ago))
    Reader(store, first.materializer.family, folder).load(kept)
    sweeping = Reader(store, first.materializer.family, folder, ttl_s=500)
    sweeping.load(other)
    assert sweeping.counts.outcomes["swept"] == 1
    left = {path.name.partition(".")[0] for path in folder.rglob("*.msgpack")}
    assert left == {kept.sha256, other.sha256}
    assert foreign.exists()
    for image in (kept, old, other):
        assert store.read(image)


# References to files


def test_a_reference_to_a_file_stands_for_its_image(reader: Callable[..., Reader], family: QwenVL, put: Put) -> None:
    image = put(1)
    one = reader()
    one.load(image)
    text = str(one.features.reference(image.sha256))
    assert text == f"mmfile:v1:features:{one.features.fingerprint}:image:{image.sha256}"
    assert described(read_feature_reference(text), [None, one.features]) == family.describe(image)


def test_a_reference_to_no_file_is_not_found_and_one_of_others_is_refused(
    reader: Callable[..., Reader], folder: Path, put: Put
) -> None:
    image = put(1)
    one = reader()
    one.load(image)
    good = one.features.reference(image.sha256)
    refused: list[tuple[FeatureReference, type[FilmrollError], int]] = [
        (msgspec.structs.replace(good, mm_hash="0" * 64), ImageNotFoundError, 404),
        (msgspec.structs.replace(good, run_id="other"), ImageNotFoundError, 404),
        (msgspec.structs.replace(good, modality="video"), FingerprintError, 400),
        (msgspec.structs.replace(good, fingerprint="0" * 32), FingerprintError, 400),
    ]
    for reference, error, status in refused:
        with pytest.raises(error) as caught:
            described(reference, [one.features])
        assert caught.value.status == status
        assert str(folder) not in caught.value.wire()["message"]
    with pytest.raises(ReferenceFormatError):
        described(good, [None])
    flip(-1000)(the_file(folder))
    with pytest.raises(ImageNotFoundError):
        described(good, [one.features])


@pytest.mark.parametrize(
    "text",
    [
        "mmfile:",
        "mmfile:v2:run:" + "0" * 32 + ":image:" + "0" * 64,
        "mmfile:v1:run:" + "0" * 32 + ":image:" + "0" * 32,
        "mmfile:v1:../run:" + "0" * 32 + ":image:" + "0" * 64,
        "mmfile:v1:run:" + "0" * 32 + ":image:" + "0" * 64 + "\n",
        "mmfile:v1:run:" + "0" * 32 + ":image:" + "0" * 64 + ":more",
        "mmfile:v1:" + "r" * 10**6 + ":" + "0" * 32 + ":image:" + "0" * 64,
    ],
)
def test_what_is_no_such_reference_is_refused(text: str) -> None:
    with pytest.raises(ReferenceFormatError):
        read_feature_reference(text)


def test_a_run_is_named_by_its_folder(family: QwenVL, tmp_path: Path) -> None:
    assert Features(tmp_path / "run7" / "assets" / "mm_features", family).run_id == "run7"
