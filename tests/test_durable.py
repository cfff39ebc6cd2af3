"""A folder is whole or not there, whatever happens while it is filled."""

import os

import pytest

from filmroll.durable import append_line, disk_full, says_full, whole_folder, write_whole
from filmroll.errors import DiskFullError
from tests.disks import files_no_longer_than, small_disk


def fill(target, text):
    with whole_folder(target) as draft:
        (draft / "a").write_text(text)
        (draft / "b").write_text(text)


def test_it_appears_with_all_its_files(tmp_path):
    fill(tmp_path / "deep" / "x", "one")
    assert {path.name: path.read_text() for path in (tmp_path / "deep" / "x").iterdir()} == {"a": "one", "b": "one"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x"]
    assert (tmp_path / "deep" / "x").stat().st_mode & 0o777 == 0o755


def test_it_replaces_what_bore_its_name(tmp_path):
    fill(tmp_path / "x", "one")
    (tmp_path / "x" / "old").write_text("old")
    fill(tmp_path / "x", "two")
    assert {path.name: path.read_text() for path in (tmp_path / "x").iterdir()} == {"a": "two", "b": "two"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_failure_leaves_what_was_there(tmp_path):
    fill(tmp_path / "x", "one")
    with pytest.raises(OSError, match="full"), whole_folder(tmp_path / "x") as draft:
        (draft / "a").write_text("two")
        raise OSError("full")
    assert (tmp_path / "x" / "a").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_files_are_on_disk_before_the_folder_bears_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("sync"), fsync(handle)))
    monkeypatch.setattr(os, "rename", lambda *paths, **keys: (calls.append("rename"), rename(*paths, **keys)))
    fill(tmp_path / "x", "one")
    assert calls == ["sync", "sync", "sync", "rename", "sync"]


def test_a_full_disk_takes_no_part_of_a_folder_a_file_or_a_line(tmp_path):
    with small_disk(tmp_path / "disk", 64 << 10) as disk:
        fill(disk.folder / "x", "one")
        append_line(disk.folder / "lines", b"1\n")
        disk.fill(leave=4096)
        there = sorted(disk.folder.iterdir())
        with pytest.raises(DiskFullError, match="disk/x: No space left") as caught:
            fill(disk.folder / "x", "two" * 3000)
        with pytest.raises(DiskFullError, match="disk/file, 9,000 bytes"):
            write_whole(disk.folder / "file", [memoryview(b"two" * 3000)])
        with pytest.raises(DiskFullError, match="a line of lines"):
            append_line(disk.folder / "lines", bytes(9000))
        assert sorted(disk.folder.iterdir()) == there
        assert (disk.folder / "x" / "a").read_text() == "one"
        append_line(disk.folder / "lines", b"2\n")
        assert (disk.folder / "lines").read_bytes() == b"1\n2\n"
        assert "bytes are free" in str(caught.value)
        assert str(disk.folder) not in str(caught.value.wire())


def test_a_line_that_fits_in_part_is_not_there(tmp_path):
    lines = tmp_path / "lines"
    append_line(lines, b"x" * 99 + b"\n")
    with files_no_longer_than(150), pytest.raises(DiskFullError, match="File too large"):
        append_line(lines, b"y" * 99 + b"\n")
    assert lines.read_bytes() == b"x" * 99 + b"\n"


def test_libraries_say_it_in_words_of_their_own(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    torch = pytest.importorskip("torch")
    with files_no_longer_than(1000):
        with pytest.raises(Exception) as caught:
            safetensors.save_file({"a": torch.zeros(1000)}, tmp_path / "a")
        assert not isinstance(caught.value, OSError)
        assert says_full(caught.value) == "File too large"
        with pytest.raises(DiskFullError, match="x: File too large"), whole_folder(tmp_path / "x") as draft:
            safetensors.save_file({"a": torch.zeros(1000)}, draft / "a")
    assert not (tmp_path / "x").exists()
    assert not list(tmp_path.glob(".x*"))


def test_other_errors_of_a_disk_stay_what_they_are(tmp_path):
    with pytest.raises(NotADirectoryError), whole_folder(tmp_path / "x") as draft:
        (draft / "file").write_text("")
        (draft / "file" / "below").write_text("")
    assert says_full(PermissionError(13, "no")) == ""
    assert "somewhere" in str(disk_full(OSError(28, "No space left on device", "/somewhere/x")))
