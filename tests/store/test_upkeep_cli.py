"""`filmroll store` as people run it, on real folders and runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from filmroll import cli
from filmroll.image import ImageRef
from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.store import Lease, Manifest, Store, open_store
from filmroll.store.keys import TRASH, object_key, object_name
from tests.store.pictures import noise

DAY = 86_400


Shared = tuple[RunDirectory, RunDirectory, Store]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def filmroll(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line in this process, as its entry point runs it."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["filmroll", "store", *map(str, arguments)])
        capsys.readouterr()
        code: object = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Done(code if isinstance(code, int) else 0, out, err)

    return run


def new_run(folder: Path, store: str = "") -> RunDirectory:
    return RunDirectory.create(
        Config.model_validate({"run": {"directory": str(folder)}, "multimodal": {"store": store}})
    )


def store_of(run: RunDirectory) -> Store:
    return run.open_store(run.config())


def play(run: RunDirectory, *seeds: int) -> list[ImageRef]:
    """Put images and refer to them, as a run does."""
    store = store_of(run)
    refs = [store.put(noise(5, 5, seed=seed)) for seed in seeds]
    Manifest(store, run.manifest_name()).keep("rl_000000", refs)
    return refs


def path_of(store: Store, ref: ImageRef, folder: str = "") -> Path:
    name = object_name(ref.sha256, ref.media_type)
    return Path(store.shelf.root) / (f"{folder}/{name}" if folder else object_key(name))


def grow_old(store: Store) -> None:
    then = time.time() - 2 * DAY
    for path in Path(store.shelf.root).rglob("*.*"):
        os.utime(path, (then, then))


def files(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    """Two runs that share a store: images 0 to 2 and 2 to 4; images 5 and 6 are nobody's. All are two days old."""
    place = str(tmp_path / "images")
    one, two = new_run(tmp_path / "one", place), new_run(tmp_path / "two", place)
    play(one, 0, 1, 2)
    play(two, 2, 3, 4)
    store = store_of(one)
    for seed in (5, 6):
        store.put(noise(5, 5, seed=seed))
    grow_old(store)
    return one, two, store


def test_gc_in_days(filmroll: Command, shared: Shared, tmp_path: Path) -> None:
    one, _, store = shared
    kept = [store.put(noise(5, 5, seed=seed)) for seed in range(5)]
    grow_old(store)
    before = files(tmp_path / "images")

    planned = filmroll("gc", one.path)
    assert planned.code == 0
    assert "2 images  296 bytes  would be moved into trash" in planned.out
    assert "5 images  740 bytes  stay: manifests name them" in planned.out
    assert "nothing was done: --delete does it" in planned.out
    assert files(tmp_path / "images") == before

    done = filmroll("gc", one.path, "--delete")
    assert "2 images  296 bytes  moved into trash" in done.out
    assert "--delete" not in done.out
    assert len(list((tmp_path / "images" / TRASH).iterdir())) == 2
    assert "2 images  296 bytes  wait in trash" in filmroll("gc", one.path, "--delete").out

    # Letting go of one run leaves what the other needs too, although only the first is named.
    assert filmroll("forget", one.path).code == 0
    grow_old(store)
    done = filmroll("gc", one.path, "--delete")
    assert "2 images  296 bytes  moved into trash" in done.out
    assert "2 images  296 bytes  removed for good" in done.out
    grow_old(store)
    filmroll("gc", one.path, "--delete")
    left = {path.stem for path in (tmp_path / "images").glob("??/*")}
    assert left == {ref.sha256 for ref in kept[2:]}
    for ref in kept[2:]:
        assert store.read(ref)


def test_a_store_that_is_named_twice_is_visited_once(filmroll: Command, shared: Shared, tmp_path: Path) -> None:
    one, two, store = shared
    (tmp_path / "link").symlink_to(tmp_path / "images")
    names = (
        one.path,
        two.path,
        tmp_path / "images",
        tmp_path / "link",
        f"{tmp_path}/images/../images",
        store.shelf.uri(""),
    )
    assert filmroll("gc", *names).out.count("moved into trash") == 1
    alone = new_run(tmp_path / "alone")
    play(alone, 9)
    assert filmroll("gc", one.path, alone.path).out.count("moved into trash") == 2


def test_a_shorter_grace_is_for_a_store_at_rest(filmroll: Command, tmp_path: Path) -> None:
    store = open_store(tmp_path / "images")
    ref = store.put(noise(5, 5))
    filmroll("gc", tmp_path / "images", "--delete")
    assert path_of(store, ref).exists()
    for _ in range(2):
        filmroll("gc", tmp_path / "images", "--delete", "--idle-grace", "0")
    assert not path_of(store, ref).exists()
    assert not path_of(store, ref, TRASH).exists()
    assert filmroll("gc", tmp_path / "images", "--idle-grace", "-1").code == 2
    assert "Only while nobody writes" in filmroll("gc", "--help").out.replace("\n", " ")


def test_gc_stops_at_a_manifest_that_cannot_be_read(filmroll: Command, shared: Shared, tmp_path: Path) -> None:
    one, two, _ = shared
    (tmp_path / "images" / "manifests" / two.manifest_name() / "rl_000000").write_bytes(b"")
    before = files(tmp_path / "images")
    done = filmroll("gc", one.path, "--delete")
    assert done.code == 1
    assert "ManifestError" in done.err
    assert two.manifest_name() in done.err
    assert {path: then for path, then in files(tmp_path / "images").items() if path in before} == before


def test_verify_names_what_is_damaged(filmroll: Command, shared: Shared, tmp_path: Path) -> None:
    one, _, store = shared
    done = filmroll("verify", one.path)
    assert done.code == 0
    assert "7 images, 1.04 kB: all whole" in done.out
    assert "100 %" in done.out
    bad = store.put(noise(5, 5, seed=1))
    path_of(store, bad).write_bytes(b"damage")
    gone = store.put(noise(5, 5, seed=3))
    path_of(store, gone).unlink()
    (tmp_path / "images" / "evil\x1b[31m\udcff.txt").write_text("x")
    done = filmroll("verify", one.path)
    assert done.code == 1
    assert f"DAMAGED  {bad.sha256[:2]}/{bad.sha256}.png: its bytes have another digest; it was set aside" in done.out
    assert f"DAMAGED  {gone.sha256[:2]}/{gone.sha256}.png: the manifest two-" in done.out
    assert "foreign  evil\ufffd[31m\ufffd.txt" in done.out
    assert "\x1b" not in done.out
    store.put(noise(5, 5, seed=1))
    store.put(noise(5, 5, seed=3))
    assert filmroll("verify", one.path).code == 0


def test_verify_ends_with_one_on_damage_as_a_process(shared: Shared) -> None:
    one, _, store = shared
    path_of(store, store.put(noise(5, 5, seed=1))).write_bytes(b"damage")
    for code in (1, 1, 0):
        done = subprocess.run(
            [sys.executable, "-m", "filmroll", "store", "verify", str(one.path)], capture_output=True, text=True
        )
        assert done.returncode == code
        assert "Traceback" not in done.stderr
        if code and "needs it" in done.stdout:
            store.put(noise(5, 5, seed=1))


def test_stats_for_people_and_programs(filmroll: Command, shared: Shared, tmp_path: Path) -> None:
    one, two, store = shared
    with Lease(store, "[red]buffer\x1b[0m") as lease:
        lease.hold([store.put(noise(5, 5, seed=5))])
        for_programs = filmroll("stats", one.path, two.path, "--json")
        for_people = filmroll("stats", one.path)
    (counted,) = [json.loads(line) for line in for_programs.out.splitlines()]
    assert counted["store"] == store.shelf.uri("")
    assert counted["images"] == {"image/png": {"count": 7, "nbytes": 7 * 148}}
    assert counted["unreferenced"]["count"] == 1
    share = counted["manifests"][one.manifest_name()]
    assert share == {
        "labels": 1,
        "images": {"count": 3, "nbytes": 3 * 148},
        "only": {"count": 2, "nbytes": 2 * 148},
        "missing": 0,
    }
    assert counted["leases"][0]["images"] == 1
    for text in (one.manifest_name(), two.manifest_name(), "[red]buffer\ufffd[0m", "image/png", "1.04 kB"):
        assert text in for_people.out
    assert "\x1b" not in for_people.out


def test_sweep_says_what_it_removed(filmroll: Command, shared: Shared, tmp_path: Path) -> None:
    one, _, store = shared
    before = files(tmp_path / "images")
    (tmp_path / "images" / "tmp" / "1-a.png").write_bytes(b"x")
    grow_old(store)
    (tmp_path / "images" / "tmp" / "2-b.png").write_bytes(b"x")
    assert "removed 1 temporary files, 0 features, 0 ended leases" in filmroll("sweep", one.path).out
    done = filmroll("sweep", one.path, "--older-than", "0")
    assert "removed 1 temporary files" in done.out
    assert set(files(tmp_path / "images")) == set(before)


def test_a_run_is_taken_elsewhere(filmroll: Command, shared: Shared, tmp_path: Path) -> None:
    one, _, store = shared
    archive, other = tmp_path / "one.tar", tmp_path / "other"
    assert "3 images of one-" in filmroll("export", one.path, archive).out
    assert filmroll("export", one.path, archive).code == 2
    assert filmroll("import", archive, other).code == 0
    assert filmroll("import", archive, other).code == 0
    assert Manifest(open_store(other), one.manifest_name()).images() == Manifest(store, one.manifest_name()).images()
    third = new_run(tmp_path / "third")
    assert filmroll("import", archive, third.path).code == 0
    assert len(list((third.path / "assets" / "images").glob("??/*"))) == 3
    # From a store alone, by the manifest's name.
    done = filmroll("export", other, tmp_path / "again.tar")
    assert done.code == 2
    assert "--manifest" in done.err
    assert filmroll("export", other, tmp_path / "again.tar", "--manifest", one.manifest_name()).code == 0
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()
    (tmp_path / "bad.tar").write_bytes(archive.read_bytes()[:-600])
    done = filmroll("import", tmp_path / "bad.tar", tmp_path / "victim")
    assert done.code == 2
    assert "ArchiveError" in done.err


def test_a_run_is_let_go_of(filmroll: Command, shared: Shared, tmp_path: Path) -> None:
    one, two, store = shared
    done = filmroll("forget", tmp_path / "images", "--manifest", "unknown")
    assert done.code == 2
    assert one.manifest_name() in done.err
    assert filmroll("forget", tmp_path / "images").code == 2
    assert Manifest(store, one.manifest_name()).labels()
    assert filmroll("forget", tmp_path / "images", "--manifest", one.manifest_name()).code == 0
    assert Manifest(store, one.manifest_name()).labels() == []
    assert Manifest(store, two.manifest_name()).labels()
    assert filmroll("forget", one.path).code == 2


@pytest.mark.parametrize("command", ["gc", "sweep", "verify", "stats"])
def test_places_that_are_missing_or_empty(filmroll: Command, tmp_path: Path, command: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    run = new_run(tmp_path / "run")
    assert filmroll(command, tmp_path / "empty").code == 0
    done = filmroll(command, run.path)
    assert (done.code, "there is nothing yet" in done.out) == (0, True)
    assert not (run.path / "assets").exists()
    for place in (tmp_path / "missing", tmp_path / "file", "", "\0", "http://host/x", "~nobody-at-all/x", "x" * 5000):
        done = filmroll(command, place)
        assert done.code == 2, place
        assert done.err.startswith("ConfigError")
    assert not (tmp_path / "missing").exists()
    (run.path / "config.json").write_text("{")
    assert filmroll(command, run.path).code == 2


def test_a_store_that_may_not_be_written_is_looked_at_and_not_changed(
    filmroll: Command, shared: Shared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, _, _ = shared

    def read_only(*arguments: object, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    before = files(tmp_path / "images")
    real_open = os.open

    def open_to_read(path: object, flags: int, *arguments: object, **options: object) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            read_only()
        return real_open(path, flags, *arguments, **options)

    for call in ("replace", "link", "unlink", "mkdir", "utime"):
        monkeypatch.setattr(os, call, read_only)
    monkeypatch.setattr(os, "open", open_to_read)
    for command in ("gc", "verify", "stats"):
        assert filmroll(command, one.path).code == 0
    for command in (("gc", "--delete"), ("sweep",), ("forget",)):
        done = filmroll(command[0], one.path, *command[1:])
        assert done.code == 1
        assert "Read-only file system" in done.err
    assert files(tmp_path / "images") == before
