"""Archives: the same bytes for the same images, taken in whole or refused, whatever is in them."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from filmroll.errors import ArchiveError, ConfigError, ImageDamagedError, ImageNotFoundError
from filmroll.image import ImageRef
from filmroll.store import Limits, Manifest, Store, open_store
from filmroll.store.keys import object_key, object_name
from filmroll.store.upkeep.archive import export_archive, import_archive
from filmroll.store.upkeep.gc import gc
from filmroll.store.upkeep.manifests import write_names
from filmroll.store.upkeep.tar import write_end, write_member
from tests.store.meddling import PLACES, CrashError, Folder, crash_at
from tests.store.pictures import encode, noise

HEAD = '{"format":"filmroll-archive-1","manifest":"run-1","labels":2,"images":3}\n'


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


@pytest.fixture
def images(store: Store) -> list[ImageRef]:
    jpeg = encode(Image.fromarray(noise(9, 7, seed=1)), "JPEG")
    return [store.put(noise(5, 5, seed=0)), store.put(jpeg), store.put(noise(40, 40, seed=2))]


@pytest.fixture
def archive(store: Store, images: list[ImageRef], tmp_path: Path) -> Path:
    manifest = Manifest(store, "run-1")
    manifest.keep("step_1", images[:2])
    manifest.keep("step_2", images[1:])
    export_archive(manifest, tmp_path / "run.tar")
    return tmp_path / "run.tar"


def names(refs: list[ImageRef]) -> list[str]:
    return sorted(object_name(ref.sha256, ref.media_type) for ref in refs)


@pytest.mark.parametrize("kind", PLACES)
def test_a_run_travels_to_another_store(
    archive: Path, images: list[ImageRef], store: Store, tmp_path: Path, kind: str
) -> None:
    other = PLACES[kind](tmp_path / "other").store()
    for _ in range(2):
        head = import_archive(archive, other)
    assert (head.manifest, head.labels, head.images) == ("run-1", 2, 3)
    manifest = Manifest(other, "run-1")
    assert {label: sorted(manifest.images(label)) for label in manifest.labels()} == {
        "step_1": names(images[:2]),
        "step_2": names(images[1:]),
    }
    for ref in images:
        name = object_name(ref.sha256, ref.media_type)
        assert other.read_named(name, 1 << 20) == store.read(ref)
    export_archive(manifest, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()


def test_it_is_a_plain_tar(archive: Path, images: list[ImageRef], store: Store) -> None:
    with tarfile.open(archive, "r:") as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [
            "filmroll.json",
            "labels/step_1",
            "labels/step_2",
            *(f"images/{name}" for name in names(images)),
        ]
        for member in members:
            assert member.isreg()
            assert (member.mtime, member.mode, member.uid, member.gid, member.uname) == (0, 0o644, 0, 0, "")
        texts = [tar.extractfile(member).read().decode() for member in members[:2]]
        by_name = {object_name(ref.sha256, ref.media_type): ref for ref in images}
        for member in members[3:]:
            assert tar.extractfile(member).read() == store.read(by_name[Path(member.name).name])
    assert texts == [HEAD, write_names(names(images[:2])).decode()]


def test_without_all_images_there_is_no_archive(archive: Path, images: list[ImageRef], store: Store) -> None:
    key = object_key(names(images)[1])
    there, manifest = store.shelf.read(key, 1 << 20), Manifest(store, "run-1")
    store.shelf.delete(key)
    with pytest.raises(ImageNotFoundError, match=key[3:67]):
        export_archive(manifest, archive.with_name("other.tar"))
    store.shelf.create(key, there[:-1])
    with pytest.raises(ImageDamagedError, match=key[3:67]):
        export_archive(manifest, archive.with_name("other.tar"))
    store.put(there)
    export_archive(manifest, archive.with_name("other.tar"))
    assert sorted(path.name for path in archive.parent.iterdir()) == ["other.tar", "run.tar", "store"]


def test_nothing_is_written_over(archive: Path, store: Store) -> None:
    before = archive.read_bytes()
    with pytest.raises(ConfigError):
        export_archive(Manifest(store, "run-1"), archive)
    assert archive.read_bytes() == before
    with pytest.raises(ArchiveError):
        export_archive(Manifest(store, "run-1"), archive / "inside.tar")
    with pytest.raises(ArchiveError):
        export_archive(Manifest(store, "run-1"), archive.with_name("missing") / "run.tar")


def test_an_empty_manifest_travels_too(store: Store, tmp_path: Path) -> None:
    export_archive(Manifest(store, "nothing"), tmp_path / "empty.tar")
    assert import_archive(tmp_path / "empty.tar", store).images == 0


def test_what_the_store_knows_of_that_run_is_kept(archive: Path, images: list[ImageRef], tmp_path: Path) -> None:
    other = open_store(tmp_path / "other")
    mine = other.put(noise(3, 3, seed=50))
    manifest = Manifest(other, "run-1")
    manifest.keep("step_2", [mine])
    manifest.keep("step_3", [mine])
    import_archive(archive, other)
    assert sorted(manifest.images("step_2")) == names([*images[1:], mine])
    assert manifest.labels() == ["step_1", "step_2", "step_3"]


def test_an_import_that_breaks_off_promises_nothing_and_is_taken_up_again(archive: Path, tmp_path: Path) -> None:
    for number in range(1, 60):
        place = Folder(tmp_path / f"other-{number}")
        try:
            import_archive(archive, place.store(crash_at(number)))
        except CrashError:
            pass
        else:
            break
        whole = place.store()
        manifest = Manifest(whole, "run-1")
        for name in manifest.images():
            assert whole.read_named(name, 1 << 20)
        import_archive(archive, whole)
        assert len(manifest.images()) == 3
        assert gc(whole).trashed.count == 0
    assert number > 10


# Hostile archives

Members = list[tuple[str, bytes]]


def members_of(archive: Path) -> Members:
    with tarfile.open(archive, "r:") as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def written(members: Members) -> bytes:
    out = io.BytesIO()
    for name, data in members:
        write_member(out, name, data)
    write_end(out)
    return out.getvalue()


def refused(data: bytes, tmp_path: Path, *, limits: Limits | None = None) -> None:
    (tmp_path / "bad.tar").write_bytes(data)
    store = open_store(tmp_path / "victim", limits)
    with pytest.raises(ArchiveError) as caught:
        import_archive(tmp_path / "bad.tar", store)
    assert str(tmp_path) not in str(caught.value.wire())
    assert Manifest(store, "run-1").labels() == []


def changed(old: str, new: str) -> Callable[[Members], Members]:
    return lambda members: [(name, data.replace(old.encode(), new.encode())) for name, data in members]


def renamed(number: int, name: str) -> Callable[[Members], Members]:
    return lambda members: [(name if i == number else one, data) for i, (one, data) in enumerate(members)]


def refilled(number: int, data: bytes) -> Callable[[Members], Members]:
    return lambda members: [(name, data if i == number else one) for i, (name, one) in enumerate(members)]


def transparent(members: Members) -> Members:
    """A whole picture under its right digest, which a store would never hold."""
    data = encode(Image.fromarray(noise(5, 5, 4)), "PNG")
    return _only(data, ".png")


def no_image(members: Members) -> Members:
    return _only(b"no image at all", ".png")


def wrong_ending(members: Members) -> Members:
    return _only(members[3][1], ".webp")


def _only(data: bytes, ending: str) -> Members:
    name = hashlib.sha256(data).hexdigest() + ending
    head = HEAD.replace(':2,"images":3', ':1,"images":1').encode()
    return [("filmroll.json", head), ("labels/a", write_names([name])), (f"images/{name}", data)]


WRONG: dict[str, Callable[[Members], Members]] = {
    "no head": lambda members: members[1:],
    "another format": changed("archive-1", "archive-2"),
    "a hostile manifest": changed('"run-1"', '"../run"'),
    "another count of labels": changed('"labels":2', '"labels":3'),
    "another count of images": changed('"images":3', '"images":4'),
    "absurd counts": changed('"labels":2', '"labels":16777216'),
    "counts beyond all": changed('"labels":2', '"labels":99999999999999999999999'),
    "a head too long": refilled(0, HEAD.encode() + b" " * 5000),
    "a head that is none": refilled(0, b"[]"),
    "labels unsorted": lambda members: [members[0], members[2], members[1], *members[3:]],
    "a label twice": lambda members: [members[0], members[1], members[1], *members[3:]],
    "a hostile label": renamed(1, "labels/../x"),
    "a label elsewhere": renamed(1, "label/step_1"),
    "a label with a dot": renamed(1, "labels/.hidden"),
    "a label that is torn": lambda members: refilled(1, members[1][1][:-1])(members),
    "an empty label": refilled(1, b""),
    "a label of paths": refilled(1, b"filmroll-manifest-1 1\n../../etc/passwd\n"),
    "an image twice": lambda members: [*members[:4], members[3], *members[4:]],
    "an image too many": lambda members: [*members, members[-1]],
    "an image too few": lambda members: members[:-1],
    "images unsorted": lambda members: [*members[:3], members[4], members[3], members[5]],
    "an image under another's name": lambda members: refilled(3, members[4][1])(members),
    "an image elsewhere": renamed(3, "../../evil.png"),
    "an absolute image": renamed(3, "/etc/passwd"),
    "an image without its folder": lambda members: renamed(3, members[3][0][7:])(members),
    "damage": lambda members: refilled(3, members[3][1][:-1] + b"x")(members),
    "an empty image": refilled(3, b""),
    "not canonical": transparent,
    "no image": no_image,
    "another ending": wrong_ending,
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_what_breaks_the_contract_is_refused(
    archive: Path, tmp_path: Path, change: Callable[[Members], Members]
) -> None:
    refused(written(change(members_of(archive))), tmp_path)


def special(**attributes: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo("filmroll.json")
    member.mode = 0o644
    for name, value in attributes.items():
        setattr(member, name, value)
    return member


HEADERS = {
    "a symbolic link": special(type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": special(type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "a device": special(type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "a FIFO": special(type=tarfile.FIFOTYPE),
    "a folder": special(type=tarfile.DIRTYPE),
    "a sparse file": special(type=tarfile.GNUTYPE_SPARSE),
    "an extended header": special(type=tarfile.XHDTYPE, size=1 << 32),
    "a long name": special(type=tarfile.GNUTYPE_LONGNAME, size=1 << 32),
    "an owner": special(uid=1000),
    "a date": special(mtime=1),
    "an executable": special(mode=0o755),
    "a huge head": special(size=(1 << 33) - 1),
    "a name of GNU's": special(name="x" * 150),
}


@pytest.mark.parametrize("member", HEADERS.values(), ids=HEADERS)
def test_only_plain_headers_are_read(archive: Path, tmp_path: Path, member: tarfile.TarInfo) -> None:
    if not member.size:
        member.size = len(HEAD)
    for format_ in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with suppress(ValueError):
            refused(member.tobuf(format_) + archive.read_bytes()[512:], tmp_path)


def test_only_this_tar_is_read(archive: Path, tmp_path: Path) -> None:
    plain = archive.read_bytes()
    for data in (b"", b"x", bytes(512), bytes(1024), bytes(10240), b"PK\x03\x04" * 200, b"\xff" * 2048, plain[512:]):
        refused(data, tmp_path)
    for mode in ("w:gz", "w:xz"):
        with tarfile.open(tmp_path / "packed.tar", mode) as tar:
            tar.add(archive, "filmroll.json")
        refused((tmp_path / "packed.tar").read_bytes(), tmp_path)
    for tail in (b"\0", bytes(512), b"x", plain):
        refused(plain + tail, tmp_path)


def test_sizes_are_bounded_before_they_are_read(archive: Path, tmp_path: Path) -> None:
    largest = max(len(data) for _, data in members_of(archive)[3:])
    refused(archive.read_bytes(), tmp_path, limits=Limits(max_bytes=largest - 1))
    sparse = tmp_path / "sparse.tar"
    sparse.write_bytes(special(size=1 << 32).tobuf(tarfile.USTAR_FORMAT))
    os.truncate(sparse, 1 << 33)
    with pytest.raises(ArchiveError):
        import_archive(sparse, open_store(tmp_path / "victim"))


def positions(size: int, step: int) -> Iterator[int]:
    yield from range(0, size, step)
    yield size - 1


def test_every_truncation_and_every_changed_byte_is_found(archive: Path, tmp_path: Path) -> None:
    plain = archive.read_bytes()
    for place in positions(len(plain), 61):
        refused(plain[:place], tmp_path)
    for place in positions(len(plain), 13):
        refused(plain[:place] + bytes([plain[place] ^ 0x10]) + plain[place + 1 :], tmp_path)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    store = open_store(tmp_path / "victim")
    for path in (tmp_path / "fifo", tmp_path, tmp_path / "missing", Path("/dev/null"), Path("/dev/zero")):
        outcome: list[BaseException] = []

        def attempt(path: Path = path, outcome: list[BaseException] = outcome) -> None:
            try:
                import_archive(path, store)
            except ArchiveError as error:
                outcome.append(error)

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(30)
        assert len(outcome) == 1
